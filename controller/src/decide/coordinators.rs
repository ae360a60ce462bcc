//! SpiderCoordinator.status: the cluster's pod and service CIDRs. Sources are the ConfigMap kube-system/kubeadm-config (the
//! quick starts let users make it by hand where kubeadm did not); what was known stays when the source goes. A coordinator that is
//! not ready blocks no pod: the agents use what is known.

use api::SpiderCoordinator;
use api::spider::coordinator::{CoordinatorPhase, PodCidrType, SpiderCoordinatorStatus};
use kube::ResourceExt;
use model::Cidr;
use serde::Deserialize;
use serde_json::json;

use crate::state::State;
use crate::write::{Kind, Op, Write, guard};

pub fn decide(state: &State) -> Vec<Write> {
    let found = cluster_cidrs(state);
    state
        .coordinators
        .values()
        .filter_map(|c| {
            let want = status(c, &found);
            let have = c.status.clone().unwrap_or_default();
            (c.status.is_none() || want != have).then(|| Write {
                kind: Kind::Coordinator,
                namespace: None,
                name: c.name_any(),
                op: Op::PatchStatus(json!({
                    "metadata": guard(c),
                    "status": {
                        "phase": want.phase,
                        "reason": want.reason,
                        "overlayPodCIDR": want.overlay_pod_cidr,
                        "serviceCIDR": want.service_cidr,
                    }
                })),
            })
        })
        .collect()
}

/// What the cluster says of itself, or why it cannot be read.
type Found = Result<Cidrs, String>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cidrs {
    pods: Vec<Cidr>,
    services: Vec<Cidr>,
}

fn status(c: &SpiderCoordinator, found: &Found) -> SpiderCoordinatorStatus {
    let known = c.status.clone().unwrap_or_default();
    let kind = c.spec.pod_cidr_type.unwrap_or(PodCidrType::Auto);
    let text = |v: &[Cidr]| v.iter().map(Cidr::to_string).collect::<Vec<_>>();
    match found {
        Ok(cidrs) => {
            let (pods, reason) = match kind {
                PodCidrType::None => (Vec::new(), None),
                PodCidrType::Auto | PodCidrType::Cluster => (text(&cidrs.pods), None),
                PodCidrType::Calico | PodCidrType::Cilium => (
                    text(&cidrs.pods),
                    Some("the pod CIDRs are the cluster's; those of the CNI's own pools are not read".to_owned()),
                ),
            };
            SpiderCoordinatorStatus {
                phase: CoordinatorPhase::Synced,
                reason,
                overlay_pod_cidr: pods,
                service_cidr: text(&cidrs.services),
            }
        }
        Err(why) => SpiderCoordinatorStatus {
            phase: CoordinatorPhase::NotReady,
            reason: Some(format!("{why}; pods start with the CIDRs that are listed here")),
            overlay_pod_cidr: if kind == PodCidrType::None { Vec::new() } else { known.overlay_pod_cidr },
            service_cidr: known.service_cidr,
        },
    }
}

fn cluster_cidrs(state: &State) -> Found {
    let map = state.kubeadm.values().next().ok_or("ConfigMap kube-system/kubeadm-config is not there")?;
    let text = map
        .data
        .as_ref()
        .and_then(|d| d.get("ClusterConfiguration"))
        .ok_or("ConfigMap kube-system/kubeadm-config has no key ClusterConfiguration")?;
    parse(text).map_err(|e| format!("ConfigMap kube-system/kubeadm-config: {e}"))
}

#[derive(Deserialize)]
struct ClusterConfiguration {
    networking: Networking,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Networking {
    #[serde(default)]
    pod_subnet: String,
    #[serde(default)]
    service_subnet: String,
}

/// `networking.podSubnet` and `.serviceSubnet`: one CIDR, or one of each family joined by a comma.
fn parse(text: &str) -> Result<Cidrs, String> {
    let conf: ClusterConfiguration = serde_saphyr::from_str(text)
        .map_err(|e| format!("ClusterConfiguration has no networking block that can be read: {e}"))?;
    let list = |field: &str, s: &str| {
        s.split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|s| s.parse::<Cidr>().map_err(|e| format!("networking.{field}: {e}")))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Cidrs {
        pods: list("podSubnet", &conf.networking.pod_subnet)?,
        services: list("serviceSubnet", &conf.networking.service_subnet)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Change;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::Event;
    use std::collections::BTreeMap;

    fn world(conf: Option<&str>, kind: Option<PodCidrType>) -> State {
        let mut s = State::default();
        let mut d = Default::default();
        if let Some(text) = conf {
            let mut m =
                ConfigMap { data: Some(BTreeMap::from([("ClusterConfiguration".into(), text.into())])), ..Default::default() };
            m.metadata.name = Some("kubeadm-config".into());
            s.apply(Change::Kubeadm(Event::Apply(m)), &mut d);
        }
        let mut c = SpiderCoordinator::new("default", Default::default());
        c.spec.pod_cidr_type = kind;
        s.apply(Change::Coordinator(Event::Apply(c)), &mut d);
        s
    }

    fn status_of(w: &[Write]) -> serde_json::Value {
        match &w[0].op {
            Op::PatchStatus(v) => v["status"].clone(),
            other => panic!("{other:?}"),
        }
    }

    const DUAL: &str = "networking:\n  podSubnet: 10.244.0.0/16,fd00:10:244::/56\n  serviceSubnet: 10.233.0.0/18\n";

    #[test]
    fn the_quick_starts_config_map_gives_both_lists() {
        let st = status_of(&decide(&world(Some(DUAL), None)));
        assert_eq!(st["phase"], "Synced");
        assert_eq!(st["overlayPodCIDR"], json!(["10.244.0.0/16", "fd00:10:244::/56"]));
        assert_eq!(st["serviceCIDR"], json!(["10.233.0.0/18"]));
    }

    #[test]
    fn none_means_no_pod_cidrs_but_services() {
        let st = status_of(&decide(&world(Some(DUAL), Some(PodCidrType::None))));
        assert_eq!(st["overlayPodCIDR"], json!([]));
        assert_eq!(st["serviceCIDR"], json!(["10.233.0.0/18"]));
    }

    #[test]
    fn without_a_source_what_was_known_stays_and_the_reason_says_so() {
        let mut s = world(None, None);
        let mut c = s.coordinators.get("default").unwrap().clone();
        c.status = Some(SpiderCoordinatorStatus {
            phase: CoordinatorPhase::Synced,
            overlay_pod_cidr: vec!["10.244.0.0/16".into()],
            ..Default::default()
        });
        s.apply(Change::Coordinator(Event::Apply(c)), &mut Default::default());
        let st = status_of(&decide(&s));
        assert_eq!(st["phase"], "NotReady");
        assert_eq!(st["overlayPodCIDR"], json!(["10.244.0.0/16"]));
        assert!(st["reason"].as_str().unwrap().starts_with("ConfigMap kube-system/kubeadm-config is not there"));
    }

    #[test]
    fn host_bits_are_an_error_that_names_the_field() {
        let st = status_of(&decide(&world(Some("networking:\n  podSubnet: 10.244.0.1/16\n"), None)));
        assert!(st["reason"].as_str().unwrap().contains("networking.podSubnet: 10.244.0.1/16 has host bits set"), "{st}");
    }

    #[test]
    fn a_status_that_is_right_is_not_written_again() {
        let mut s = world(Some(DUAL), None);
        let w = decide(&s);
        let mut c = s.coordinators.get("default").unwrap().clone();
        c.status = Some(serde_json::from_value(status_of(&w)).unwrap());
        s.apply(Change::Coordinator(Event::Apply(c)), &mut Default::default());
        assert_eq!(decide(&s), vec![]);
    }
}
