//! From a CNI request to the planner's `Attach`, and from a plan back to a CNI result.

use cni::{AddResult, Error, Request};
use model::{AttachmentId, Owner, RunBy};
use planner::step::Probe;
use planner::{Attach, Class, Gateways, Nic, NicRoute, Ns, Plan, Refusal, Step};

/// The attachment that a call is about. `nic` is what an IPAM said (ADD), what `prevResult` says (CHECK), or nothing (DEL).
pub fn attach_of(request: &Request, nic: Nic, by: RunBy) -> Result<Attach, Error> {
    let ifname = request.attachment_ifname()?.clone();
    Ok(Attach {
        owner: Owner { attachment: AttachmentId::of(&request.container_id, ifname.as_str()), by },
        pod: request.pod(),
        container_id: request.container_id.clone(),
        netns: request.netns.clone(),
        ifname,
        network: request.conf.name.clone(),
        // A DEL with a wrong address still has to delete.
        mac: match request.verb {
            cni::Verb::Del => cni::args::wanted_mac(&request.conf, &request.args).unwrap_or(None),
            _ => cni::args::wanted_mac(&request.conf, &request.args)?,
        },
        nic,
        probe: Probe::default(),
    })
}

/// What an IPAM's result means for the NIC: IPv4 first, the order within a family kept.
pub fn nic_of(result: &AddResult) -> Nic {
    nic(result, |_| true)
}

/// What `prevResult` says of this interface. Without IPAM it has no addresses.
pub fn nic_of_prev(request: &Request) -> Nic {
    let Some(prev) = &request.conf.prev_result else {
        return Nic::default();
    };
    let at = request.ifname.as_ref().and_then(|name| prev.pod_interface(name.as_str())).map(|(i, _)| i);
    let mut nic = nic(prev, |ip| at.is_none_or(|at| ip.interface.is_none_or(|i| i == at)));
    nic.has_ipam = request.conf.ipam.is_some();
    nic
}

fn nic(result: &AddResult, mine: impl Fn(&cni::Ip) -> bool) -> Nic {
    let mut nic = Nic { has_ipam: true, ..Nic::default() };
    for v4 in [true, false] {
        for ip in result.ips.iter().filter(|ip| ip.address.is_ipv4() == v4 && mine(ip)) {
            nic.addrs.push(ip.address);
            let slot = if v4 { &mut nic.gateways.v4 } else { &mut nic.gateways.v6 };
            *slot = slot.or(ip.gateway);
        }
    }
    for v4 in [true, false] {
        nic.routes.extend(result.routes.iter().filter(|r| r.dst.is_ipv4() == v4).map(|r| NicRoute {
            dst: r.dst,
            gw: r.gw,
            table: r.table,
            metric: r.priority,
            mtu: r.mtu,
            advmss: r.advmss,
        }));
    }
    nic
}

/// The gateway of a family.
pub fn gateway(gateways: Gateways, v4: bool) -> Option<std::net::IpAddr> {
    if v4 { gateways.v4 } else { gateways.v6 }
}

/// The result of a plan that was carried out: links and routes are those of its steps, so it says what is there and not
/// what was wished. `ipam` brings `dns` where the configuration has none.
pub fn result_of(attach: &Attach, plan: &Plan, request: &Request, ipam: Option<&AddResult>) -> Result<AddResult, Error> {
    let sandbox = attach.netns.clone().unwrap_or_default();
    let text = |mac: Option<model::MacAddr>| mac.map(|m| m.to_string()).unwrap_or_default();
    let mut interfaces = Vec::new();
    let mut routes = Vec::new();
    for step in &plan.steps {
        match step {
            Step::AddVeth(v) => {
                let mtu = v.mtu.map(model::Mtu::get);
                interfaces.push(cni::Interface {
                    name: v.host_name.to_string(),
                    mac: text(v.host_mac),
                    mtu,
                    ..Default::default()
                });
                interfaces.push(cni::Interface {
                    name: v.pod_name.to_string(),
                    mac: text(v.pod_mac),
                    mtu,
                    sandbox: sandbox.clone(),
                    ..Default::default()
                });
            }
            Step::AddMacvlan(m) => interfaces.push(cni::Interface {
                name: m.name.to_string(),
                mac: text(m.mac),
                mtu: m.mtu.map(model::Mtu::get),
                sandbox: sandbox.clone(),
                ..Default::default()
            }),
            Step::AddRoute { ns: Ns::Pod, route } if route.dev == attach.ifname => routes.push(cni::Route {
                dst: route.dst,
                gw: route.gw,
                mtu: route.mtu,
                advmss: route.advmss,
                priority: route.metric,
                table: Some(route.table).filter(|t| *t != model::addr::TABLE_MAIN),
                scope: None,
            }),
            _ => {}
        }
    }
    let at = interfaces.iter().position(|i| i.name == attach.ifname.as_str() && i.sandbox == sandbox);
    let ips = attach
        .nic
        .addrs
        .iter()
        .map(|a| cni::Ip { address: *a, gateway: gateway(attach.nic.gateways, a.is_ipv4()), interface: at })
        .collect();
    let dns = match request.conf.raw().get("dns") {
        Some(v) => cni::Dns::from_value(v).map_err(|e| Error::config(e.to_string()))?,
        None => cni::Dns::default(),
    };
    let dns = if dns == cni::Dns::default() { ipam.map(|r| r.dns.clone()).unwrap_or_default() } else { dns };
    Ok(AddResult { interfaces, ips, routes, dns })
}

/// A refusal as a CNI error.
pub fn error_of(r: &Refusal) -> Error {
    let code = match r.class {
        Class::Invalid => Error::INVALID_CONFIG,
        Class::Missing => Error::MISSING,
        Class::Conflict => Error::CONFLICT,
        Class::Later => Error::TRY_AGAIN,
    };
    Error::new(code, r.to_string())
}

/// What CHECK found.
pub fn check_error(r: &Refusal) -> Error {
    Error::new(Error::CHECK, r.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(verb: &str, extra: serde_json::Value) -> Request {
        let mut conf = json!({"cniVersion":"1.0.0","name":"net","type":"cni-macvlan"});
        for (k, v) in extra.as_object().unwrap() {
            conf[k] = v.clone();
        }
        let call = cni::request::RawCall {
            command: verb.into(),
            container_id: "c1".into(),
            netns: "/run/netns/a".into(),
            ifname: "net1".into(),
            args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_UID=u".into(),
            path: "/opt/cni/bin".into(),
        };
        Request::from_value(&call, conf).unwrap()
    }

    #[test]
    fn ipv4_comes_first_whatever_the_ipam_says() {
        let r = AddResult::from_value(&json!({
            "ips":[{"address":"fd00::2/64","gateway":"fd00::1"},{"address":"10.6.1.10/16","gateway":"10.6.0.1"}],
            "routes":[{"dst":"::/0","gw":"fd00::1"},{"dst":"0.0.0.0/0","gw":"10.6.0.1","priority":5}]}))
        .unwrap();
        let n = nic_of(&r);
        assert_eq!(n.addrs.iter().map(|a| a.to_string()).collect::<Vec<_>>(), ["10.6.1.10/16", "fd00::2/64"]);
        assert_eq!(n.gateways, Gateways { v4: "10.6.0.1".parse().ok(), v6: "fd00::1".parse().ok() });
        assert_eq!((n.routes[0].dst.to_string(), n.routes[0].metric), ("0.0.0.0/0".into(), Some(5)));
    }

    #[test]
    fn check_reads_the_addresses_of_its_own_interface() {
        let prev = json!({"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/a"},{"name":"net1","sandbox":"/run/netns/a"}],
            "ips":[{"address":"10.244.0.2/24","interface":0},{"address":"10.6.1.10/16","interface":1}]});
        let n = nic_of_prev(&request("CHECK", json!({"prevResult": prev, "ipam": {"type":"x"}})));
        assert_eq!(n.addrs.iter().map(|a| a.to_string()).collect::<Vec<_>>(), ["10.6.1.10/16"]);
        assert!(n.has_ipam);
    }

    #[test]
    fn an_attachment_names_its_owner_and_pod() {
        let a = attach_of(&request("ADD", json!({"mac":"0a:00:00:00:00:01"})), Nic::default(), RunBy::Alone).unwrap();
        assert_eq!(a.owner.attachment, AttachmentId::of("c1", "net1"));
        assert_eq!((a.pod.unwrap().to_string(), a.mac.unwrap().to_string()), ("default/a".into(), "0a:00:00:00:00:01".into()));
    }

    #[test]
    fn del_goes_on_where_add_would_refuse_the_mac() {
        assert!(attach_of(&request("ADD", json!({"mac":"x"})), Nic::default(), RunBy::Alone).is_err());
        assert!(attach_of(&request("DEL", json!({"mac":"x"})), Nic::default(), RunBy::Alone).is_ok());
    }

    #[test]
    fn classes_have_codes() {
        let code = |c| error_of(&Refusal::new(c, "f", "v", "r")).code;
        assert_eq!([code(Class::Invalid), code(Class::Missing), code(Class::Conflict), code(Class::Later)], [7, 100, 101, 11]);
        assert_eq!(check_error(&Refusal::missing("bridge", "br1", "is not there")).to_string(), "bridge \"br1\": is not there");
    }
}
