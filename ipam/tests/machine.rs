//! Single decisions of the machine that the simulation seldom comes to, or whose loss another one makes good: each is what
//! stands between two pods and one address, or between a pod and an address that somebody keeps.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam::machine::{Ask, Held, Machine, Map, Output, Owner, PoolOfAsk, Reply, Request, RequestId, What};
use ipam::{Family, Holder, Identity, IdentityKind, Lease, Name, Quarantine, Ranges, Wanted, Window};

const BEGAN: Duration = Duration::from_secs(1);
/// What an agent sent before it was stopped can come in no more.
const START: Duration = Duration::from_secs(151);
const HOUR: Duration = Duration::from_secs(3600);

fn name(last: u8) -> Name {
    Name { ip: IpAddr::from([10, 0, 0, last]), domain: "d".into() }
}

fn holder() -> Arc<Holder> {
    let text = |s: &str| s.to_owned();
    Arc::new(Holder { namespace: text("n"), pod: text("p"), uid: text("u"), nic: text("eth0"), container: text("c1") })
}

fn lease(last: u8, version: &str, held: bool) -> Lease {
    Lease {
        name: name(last),
        uid: "1".into(),
        version: version.into(),
        pool: "p".into(),
        node: "n1".into(),
        agent_id: "a1".into(),
        holder: held.then(holder),
        identity: None,
        wanted: None,
        released: false,
        quarantine: None,
    }
}

fn ranges() -> Ranges {
    Ranges::of_ips(Family::V4, (1..20).map(|n| name(n).ip))
}

fn map(version: &str, recall: Vec<IpAddr>) -> Map {
    let leased = [name(1).ip, name(2).ip].into();
    Map { version: version.into(), window: Window::build(&ranges(), &leased), spares_per_node: 1, recall, nodes: Vec::new() }
}

fn requests(m: &mut Machine) -> Vec<(RequestId, Request)> {
    let all = std::iter::from_fn(|| m.pop());
    all.filter_map(|o| if let Output::Request(id, r) = o { Some((id, r)) } else { None }).collect()
}

/// The one request that is sent now.
fn request(m: &mut Machine) -> (RequestId, Request) {
    let mut all = requests(m);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// An agent that began a moment ago, whose pod has 10.0.0.1, and that found the spare 10.0.0.2.
fn with_a_found_spare() -> Machine {
    let me = Owner { node: "n1".into(), agent_id: "a1".into() };
    let held = Held { name: name(1), pool: "p".into(), holder: holder(), identity: None };
    let mut m = Machine::new(me, [held], 7, BEGAN);
    m.map(BEGAN, "p", Some(map("1", Vec::new())));
    let (list, asked) = request(&mut m);
    assert_eq!(asked, Request::ListNode);
    m.reply(BEGAN, list, Reply::Leases(vec![lease(1, "1", true), lease(2, "2", false)]));
    let (get, asked) = request(&mut m);
    assert_eq!(asked, Request::Get(name(2)), "a list is from a cache: what it names is looked at");
    m.reply(BEGAN, get, Reply::Done(lease(2, "2", false)));
    assert!(requests(&mut m).is_empty());
    m
}

/// The same, later: it has the spare in hand.
fn with_a_spare() -> Machine {
    let mut m = with_a_found_spare();
    m.tick(START);
    for (id, asked) in requests(&mut m) {
        let answer = match asked {
            Request::ListNode => Reply::Leases(vec![lease(1, "1", true), lease(2, "2", false)]),
            Request::Get(asked) if asked == name(1) => Reply::Done(lease(1, "1", true)),
            Request::Get(asked) if asked == name(2) => Reply::Done(lease(2, "2", false)),
            _ => panic!("{asked:?}"),
        };
        m.reply(START, id, answer);
    }
    assert_eq!(m.spares().collect::<Vec<_>>(), [&name(2)]);
    assert!(requests(&mut m).is_empty());
    m
}

fn ask(identity: Option<Arc<Identity>>) -> Ask {
    let pool = PoolOfAsk { name: "p".into(), domain: "d".into(), ranges: Arc::new(ranges()) };
    Ask { holder: holder(), identity, what: What::Any(vec![pool]) }
}

/// The answer to the look at the lease that was written last, a minute after the start.
fn checked(m: &mut Machine, answer: Reply) -> Duration {
    let minute = START + Duration::from_secs(60);
    m.tick(minute);
    let (get, asked) = request(m);
    assert_eq!(asked, Request::Get(name(2)));
    m.reply(minute, get, answer);
    minute
}

#[test]
fn a_spare_found_at_the_start_is_given_by_a_write_that_voids_what_an_earlier_life_sent() {
    let mut m = with_a_found_spare();
    assert_eq!(m.spares().count(), 0, "a delete by this version may still come in");
    let id = m.take(BEGAN, ask(None));
    let (update, asked) = request(&mut m);
    let Request::Update(taken) = asked else { panic!("{asked:?}") };
    assert_eq!((&taken.name, &*taken.version, taken.holder.is_some()), (&name(2), "2", true));
    m.reply(BEGAN, update, Reply::Done(Lease { version: "3".into(), ..taken }));
    let taken = std::iter::from_fn(|| m.pop()).find_map(|o| if let Output::Taken(i, t) = o { Some((i, t.name)) } else { None });
    assert_eq!(taken, Some((id, name(2))));
}

#[test]
fn a_list_that_lacks_a_lease_raises_a_question_and_nothing_else() {
    let mut m = with_a_spare();
    m.tick(START + HOUR + HOUR);
    let (list, _) = requests(&mut m).into_iter().find(|(_, r)| *r == Request::ListNode).unwrap();
    m.reply(START + HOUR + HOUR, list, Reply::Leases(vec![lease(2, "2", false)]));
    assert_eq!(request(&mut m).1, Request::Get(name(1)), "not created anew by the word of an old list");
}

#[test]
fn nobody_gives_back_what_another_container_has() {
    let mut m = with_a_spare();
    m.release(START, &name(1), "c2", false);
    assert!(matches!(m.pop(), Some(Output::Released(n)) if n == name(1)), "c2 has nothing of it");
    assert!(requests(&mut m).is_empty());
    assert_eq!(m.held().map(|(n, _)| n).collect::<Vec<_>>(), [&name(1)]);
    m.release(START, &name(1), "c1", false);
    assert_eq!(m.held().count(), 0);
}

#[test]
fn a_spare_that_somebody_asks_for_goes() {
    let mut m = with_a_spare();
    let wanted = Wanted { node: "n2".into(), agent_id: "a2".into(), namespace: "n".into(), pod: "q".into() };
    let asked_for = Lease { wanted: Some(Arc::new(wanted)), ..lease(2, "3", false) };
    let now = checked(&mut m, Reply::Done(asked_for.clone()));
    assert_eq!(m.spares().count(), 0);
    // It changed, and nobody but us may have changed it: looked at once more.
    let asked = requests(&mut m);
    let (get, _) = asked.iter().find(|(_, r)| *r == Request::Get(name(2))).unwrap();
    m.reply(now, *get, Reply::Done(asked_for.clone()));
    assert_eq!(request(&mut m).1, Request::Delete(asked_for));
}

#[test]
fn a_spare_that_the_map_asks_back_goes() {
    let mut m = with_a_spare();
    m.map(START, "p", Some(map("2", vec![name(2).ip])));
    assert_eq!(m.spares().count(), 0);
    assert_eq!(request(&mut m).1, Request::Delete(lease(2, "2", false)));
}

#[test]
fn after_a_loss_a_spare_is_looked_at_before_it_is_given() {
    let mut m = with_a_spare();
    m.tick(START + HOUR + HOUR);
    let (list, _) = requests(&mut m).into_iter().find(|(_, r)| *r == Request::ListNode).unwrap();
    m.reply(START + HOUR + HOUR, list, Reply::Leases(vec![lease(2, "2", false)]));
    let (get, _) = request(&mut m);
    // etcd went back in time: what only we may delete is not there.
    m.reply(START + HOUR + HOUR, get, Reply::Absent);
    assert_eq!(m.spares().count(), 0, "the spare may be another's by now");
    let asked: Vec<Request> = requests(&mut m).into_iter().map(|(_, r)| r).collect();
    assert!(asked.contains(&Request::Get(name(2))), "{asked:?}");
}

#[test]
fn a_write_without_an_answer_is_looked_for_when_it_can_come_in_no_more() {
    let mut m = with_a_spare();
    let identity =
        Identity { kind: IdentityKind::StatefulSet, namespace: "n".to_owned(), name: "web-0".to_owned(), nic: "eth0".to_owned() };
    let ask = m.take(START, ask(Some(Arc::new(identity))));
    let (update, asked) = request(&mut m);
    let Request::Update(taken) = asked else { panic!("{asked:?}") };
    assert_eq!(taken.name, name(2));
    m.reply(START, update, Reply::Failed { doubtful: true, permanent: false, error: "no answer".to_owned() });
    m.cancel(START, ask);
    let soon = START + Duration::from_secs(1);
    m.tick(soon);
    let (get, asked) = request(&mut m);
    assert_eq!(asked, Request::Get(name(2)));
    m.reply(soon, get, Reply::Done(lease(2, "2", false)));
    assert_eq!(m.spares().count(), 0, "it may be taken yet");
    // The look of each minute is at another one.
    m.tick(START + Duration::from_secs(60));
    assert!(requests(&mut m).iter().all(|(_, r)| *r != Request::Get(name(2))));
    // It was carried out meanwhile, and nobody is told.
    let late = START + Duration::from_secs(95);
    m.tick(late);
    let asked = requests(&mut m);
    let gets: Vec<_> = asked.iter().filter(|(_, r)| *r == Request::Get(name(2))).collect();
    for (id, _) in gets {
        m.reply(late, *id, Reply::Done(Lease { version: "3".into(), ..taken.clone() }));
    }
    let asked: Vec<Request> = requests(&mut m).into_iter().map(|(_, r)| r).collect();
    let emptied =
        |r: &Request| matches!(r, Request::Update(l) if l.name == name(2) && l.holder.is_none() && l.identity.is_none());
    assert!(asked.iter().any(emptied), "{asked:?}");
}

#[test]
fn a_running_sandbox_takes_no_address_out_of_quarantine() {
    let mut m = with_a_spare();
    let later = START + HOUR + HOUR;
    m.tick(later);
    let (list, _) = requests(&mut m).into_iter().find(|(_, r)| *r == Request::ListNode).unwrap();
    m.reply(later, list, Reply::Leases(vec![lease(2, "2", false)]));
    let (get, asked) = request(&mut m);
    assert_eq!(asked, Request::Get(name(1)));
    // etcd went back to when it was in quarantine.
    let why = Quarantine { mac: None, reason: "DuplicateAddress".to_owned(), node: "n2".into() };
    let nobodys = Lease { node: "".into(), agent_id: "".into(), quarantine: Some(Arc::new(why)), ..lease(1, "9", false) };
    m.reply(later, get, Reply::Done(nobodys));
    let said: Vec<Output> = std::iter::from_fn(|| m.pop()).collect();
    assert!(said.iter().any(|o| matches!(o, Output::Contested { name: n, .. } if *n == name(1))), "{said:?}");
    let writes = |o: &Output| matches!(o, Output::Request(_, Request::Create(_) | Request::Update(_) | Request::Delete(_)));
    assert!(!said.iter().any(writes), "{said:?}");
}
