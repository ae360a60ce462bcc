//! An agent whose journal was lost while its sandboxes live: nothing is given before the first list, and what is found in the
//! sandboxes is kept, until it is given back as ever.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam::machine::{Ask, Held, Machine, Output, Owner, PoolOfAsk, Reply, Request, RequestId, TakeError, What};
use ipam::{Holder, Lease, Name, Ranges};

const T0: Duration = Duration::ZERO;

fn name(last: u8) -> Name {
    Name { ip: IpAddr::from([10, 0, 0, last]), domain: "default".into() }
}

fn holder(container: &str) -> Arc<Holder> {
    let s = str::to_owned;
    Arc::new(Holder { namespace: s("d"), pod: s(container), uid: s("u"), nic: s("eth0"), container: s(container) })
}

fn lease(last: u8, container: Option<&str>) -> Lease {
    Lease {
        name: name(last),
        uid: "u".into(),
        version: "1".into(),
        pool: "p".into(),
        node: "n1".into(),
        agent_id: "a1".into(),
        holder: container.map(holder),
        identity: None,
        wanted: None,
        released: false,
        quarantine: None,
    }
}

fn machine() -> Machine {
    Machine::new(Owner { node: "n1".into(), agent_id: "a1".into() }, [], 7, T0)
}

fn ask(container: &str) -> Ask {
    let ranges = Arc::new(Ranges::parse(&["10.0.0.1-10.0.0.3"], ipam::Family::V4, None).unwrap());
    let pool = PoolOfAsk { name: "p".into(), domain: "default".into(), ranges };
    Ask { holder: holder(container), identity: None, what: What::Any(vec![pool]) }
}

fn held(last: u8, container: &str) -> Held {
    Held { name: name(last), pool: "p".into(), holder: holder(container), identity: None }
}

fn requests(m: &mut Machine) -> Vec<(RequestId, Request)> {
    outputs(m).into_iter().filter_map(|o| if let Output::Request(id, r) = o { Some((id, r)) } else { None }).collect()
}

fn outputs(m: &mut Machine) -> Vec<Output> {
    std::iter::from_fn(|| m.pop()).collect()
}

/// The one request that is under way: the list.
fn list(m: &mut Machine) -> RequestId {
    match requests(m).as_slice() {
        [(id, Request::ListNode)] => *id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_address_is_given_before_the_first_list() {
    let mut m = machine();
    let id = list(&mut m);
    m.take(T0, ask("new"));
    assert_eq!(requests(&mut m), []);
    m.reply(T0, id, Reply::Leases(Vec::new()));
    assert!(matches!(requests(&mut m).as_slice(), [(_, Request::Create(_))]), "then it is");
}

#[test]
fn an_add_does_not_wait_for_a_list_that_fails_for_long() {
    let mut m = machine();
    let mut now = T0;
    let mut id = list(&mut m);
    m.take(now, ask("new"));
    for _ in 0..20 {
        let failed = Reply::Failed { doubtful: false, permanent: false, error: "too many requests".into() };
        m.reply(now, id, failed);
        if let Some(Output::Failed(_, error)) = outputs(&mut m).into_iter().find(|o| matches!(o, Output::Failed(..))) {
            assert_eq!(error, TakeError::Api { permanent: false, error: "too many requests".into() });
            assert!(now < Duration::from_secs(5), "{now:?}");
            return;
        }
        now = m.next_wake().unwrap();
        m.tick(now);
        id = list(&mut m);
    }
    panic!("it still waits at {now:?}");
}

#[test]
fn what_sandboxes_have_is_kept_and_given_back_as_ever_and_the_rest_goes() {
    let mut m = machine();
    let id = list(&mut m);
    m.take(T0, ask("new"));
    let all = vec![lease(1, Some("lives")), lease(2, Some("died")), lease(3, None)];
    assert!(all.iter().all(|l| !m.knows(&l.name)));
    m.living(T0, vec![held(1, "lives")], vec![(name(3), "p".into())]);
    m.reply(T0, id, Reply::Leases(all));
    // That of the dead one is looked at; of the living one all is as it should be, the third nobody touches.
    let asked: Vec<Request> = requests(&mut m).into_iter().map(|(_, r)| r).collect();
    assert_eq!(asked.iter().filter(|r| **r == Request::Get(name(2))).count(), 1, "{asked:?}");
    let touched =
        |n: u8| asked.iter().any(|r| matches!(r, Request::Get(x) | Request::Create(Lease { name: x, .. }) if *x == name(n)));
    assert!(!touched(1) && !touched(3), "{asked:?}");
    assert_eq!(m.held().map(|(n, h)| (n.ip, h.container.as_str())).collect::<Vec<_>>(), [(name(1).ip, "lives")]);
    assert!(m.knows(&name(1)) && m.knows(&name(2)) && !m.knows(&name(3)));

    m.release(T0, &name(1), "lives", false);
    let after = requests(&mut m);
    let [(id, Request::Delete(l))] = after.as_slice() else { panic!("{after:?}") };
    assert_eq!((&l.name, &*l.version), (&name(1), "1"));
    m.reply(T0, *id, Reply::Deleted);
    assert!(outputs(&mut m).iter().any(|o| matches!(o, Output::Released(n) if *n == name(1))));
}

#[test]
fn what_somebody_used_is_looked_at_when_nobody_does_any_more() {
    let mut m = machine();
    let id = list(&mut m);
    m.living(T0, Vec::new(), vec![(name(3), "p".into())]);
    m.reply(T0, id, Reply::Leases(vec![lease(3, None)]));
    assert_eq!(requests(&mut m), []);
    assert_eq!(m.spares().count(), 0);
    let (now, id) = loop {
        let now = m.next_wake().unwrap();
        m.tick(now);
        if let Some((id, _)) = requests(&mut m).into_iter().find(|(_, r)| *r == Request::ListNode) {
            break (now, id);
        }
        assert!(now < Duration::from_secs(7200), "there is a comparison each hour");
    };
    m.living(now, Vec::new(), Vec::new());
    m.reply(now, id, Reply::Leases(vec![lease(3, None)]));
    assert!(matches!(requests(&mut m).as_slice(), [(_, Request::Get(n))] if *n == name(3)));
}

#[test]
fn living_takes_nothing_from_who_is_known() {
    let mut m = Machine::new(Owner { node: "n1".into(), agent_id: "a1".into() }, [held(1, "known")], 7, T0);
    let id = requests(&mut m).into_iter().find(|(_, r)| *r == Request::ListNode).unwrap().0;
    m.living(T0, vec![held(1, "other")], vec![(name(1), "p".into())]);
    m.reply(T0, id, Reply::Leases(vec![lease(1, Some("known"))]));
    assert_eq!(m.held().map(|(_, h)| h.container.as_str()).collect::<Vec<_>>(), ["known"]);
}

#[test]
fn a_lease_of_ours_that_names_who_is_in_no_record_is_nobodys_before_the_sandboxes_were_looked_at() {
    let mut m = machine();
    let id = list(&mut m);
    // From a cache that does not have it yet.
    m.reply(T0, id, Reply::Leases(Vec::new()));
    let What::Any(pools) = ask("new").what else { unreachable!("made above") };
    let fixed = What::Fixed { pool: pools[0].clone(), ip: name(1).ip };
    m.take(T0, Ask { what: fixed, ..ask("new") });
    let asked = requests(&mut m);
    let [(id, Request::Get(n))] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(*n, name(1));
    m.reply(T0, *id, Reply::Done(lease(1, Some("lives"))));
    assert_eq!(requests(&mut m), [], "it may live");
    let (now, id) = loop {
        let now = m.next_wake().unwrap();
        m.tick(now);
        match requests(&mut m).as_slice() {
            [] => {}
            [(id, Request::ListNode)] => break (now, *id),
            other => panic!("{other:?}"),
        }
    };
    assert!(now <= Duration::from_secs(5), "{now:?}");
    assert!(!m.knows(&name(1)), "so that it is looked for");
    m.living(now, vec![held(1, "lives")], Vec::new());
    m.reply(now, id, Reply::Leases(vec![lease(1, Some("lives"))]));
    assert_eq!(m.held().map(|(_, h)| h.container.as_str()).collect::<Vec<_>>(), ["lives"]);
    assert_eq!(requests(&mut m), [], "its lease says so already");
}
