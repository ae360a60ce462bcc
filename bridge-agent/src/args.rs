//! Flags of the agent, checked.

use std::path::PathBuf;

use clap::Parser;

/// The node's half of Mooring: builds its bridges and attaches its pods.
#[derive(Debug, Clone, Parser)]
#[command(name = "mooring-agent", version)]
pub struct Args {
    /// Name of this node, as the API knows it.
    #[arg(long, env = "NODE_NAME", value_parser = node_name)]
    pub node: String,
    /// Socket of mooring-standalone; absent: the API server of the kubeconfig, or of the cluster that this runs in.
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// Socket that the CNI plugins call.
    #[arg(long, value_name = "PATH", default_value = "/run/mooring/cni.sock")]
    pub cni_socket: PathBuf,
    /// Open vSwitch's database, `unix:<path>`; empty: this node has no Open vSwitch.
    #[arg(long, value_name = "ENDPOINT", default_value = "unix:/var/run/openvswitch/db.sock")]
    pub ovsdb: String,
    /// Directory that outlives a boot.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/mooring")]
    pub state_dir: PathBuf,
    /// Directory that does not.
    #[arg(long, value_name = "DIR", default_value = "/run/mooring")]
    pub run_dir: PathBuf,
    /// Where the node's CNI configurations are.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Cluster network where the `mooring` plugin's configuration names none: `name` of a configuration in the directory above,
    /// or `namespace/name` of a NetworkAttachmentDefinition.
    #[arg(long, value_name = "NAME")]
    pub primary: Option<String>,
    /// Namespace of this agent: where a pool's bare `multusName` is looked for.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "kube-system")]
    pub namespace: String,
    #[command(flatten)]
    pub log: runtime::log::LogArgs,
}

/// Kubernetes' rule for a Node's name: an RFC 1123 subdomain.
fn node_name(s: &str) -> Result<String, String> {
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if s.len() <= 253 && s.split('.').all(label) {
        Ok(s.to_owned())
    } else {
        Err("a node's name has lower-case letters, digits, '-' and '.', and at most 253 of them".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_documented_paths() {
        let a = Args::try_parse_from(["mooring-agent", "--node", "node1"]).unwrap();
        assert_eq!(a.cni_socket, PathBuf::from("/run/mooring/cni.sock"));
        assert_eq!(a.ovsdb, "unix:/var/run/openvswitch/db.sock");
        assert!(a.api_socket.is_none() && a.primary.is_none());
    }

    #[test]
    fn a_node_name_that_no_node_can_have_is_refused() {
        for bad in ["", "Node1", "node_1", "-node", "node/1"] {
            assert!(Args::try_parse_from(["mooring-agent", "--node", bad]).is_err(), "{bad:?}");
        }
    }
}
