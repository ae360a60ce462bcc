//! Flags of the agent, checked.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use plumbing::{Endpoint, SslFiles};

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
    /// Open vSwitch's database, `unix:<path>`, `tcp:<host>:<port>` or `ssl:<host>:<port>`: always the one of this node. Empty:
    /// this node has no Open vSwitch.
    #[arg(long, value_name = "ENDPOINT", default_value = "unix:/var/run/openvswitch/db.sock")]
    pub ovsdb: String,
    /// For `ssl`, as `ovs-vsctl --private-key`: PEM file with our key. It is read again for each connection, as the next two.
    #[arg(long, value_name = "PATH", requires_all = ["ovsdb_certificate", "ovsdb_ca_cert"])]
    pub ovsdb_private_key: Option<PathBuf>,
    /// For `ssl`, as `ovs-vsctl --certificate`: PEM file with our certificate.
    #[arg(long, value_name = "PATH", requires_all = ["ovsdb_private_key", "ovsdb_ca_cert"])]
    pub ovsdb_certificate: Option<PathBuf>,
    /// For `ssl`, as `ovs-vsctl --ca-cert`: PEM file with the certificate of the authority that vouches for the server.
    #[arg(long, value_name = "PATH", requires_all = ["ovsdb_private_key", "ovsdb_certificate"])]
    pub ovsdb_ca_cert: Option<PathBuf>,
    /// Directory that outlives a boot.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/mooring")]
    pub state_dir: PathBuf,
    /// Directory that does not.
    #[arg(long, value_name = "DIR", default_value = "/run/mooring")]
    pub run_dir: PathBuf,
    /// Where the runtime binds the network namespaces of sandboxes: looked at for what the journal has lost.
    #[arg(long, value_name = "DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,
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

impl Args {
    /// None: this node has no Open vSwitch.
    pub fn ovsdb_endpoint(&self) -> anyhow::Result<Option<Endpoint>> {
        if self.ovsdb.is_empty() {
            return Ok(None);
        }
        let files = match (&self.ovsdb_private_key, &self.ovsdb_certificate, &self.ovsdb_ca_cert) {
            (Some(key), Some(certificate), Some(ca_cert)) => {
                Some(SslFiles { private_key: key.clone(), certificate: certificate.clone(), ca_cert: ca_cert.clone() })
            }
            _ => None,
        };
        let endpoint = Endpoint::with_ssl(&self.ovsdb, files);
        endpoint.map(Some).context("--ovsdb, with --ovsdb-private-key, --ovsdb-certificate and --ovsdb-ca-cert for ssl")
    }
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
    fn an_ssl_database_needs_all_three_files() {
        let args = |more: &[&str]| Args::try_parse_from([&["mooring-agent", "--node", "node1"], more].concat());
        let files = ["--ovsdb-private-key=k", "--ovsdb-certificate=c", "--ovsdb-ca-cert=ca"];
        let ssl = "--ovsdb=ssl:127.0.0.1:6640";
        let all = args(&[&[ssl], files.as_slice()].concat()).unwrap();
        assert_eq!(all.ovsdb_endpoint().unwrap().unwrap().to_string(), "ssl:127.0.0.1:6640");
        for left_out in 0..files.len() {
            let mut some = files.to_vec();
            some.remove(left_out);
            assert!(args(&[&[ssl], some.as_slice()].concat()).is_err(), "without {}", files[left_out]);
        }
        let error = args(&[ssl]).unwrap().ovsdb_endpoint().unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "--ovsdb, with --ovsdb-private-key, --ovsdb-certificate and --ovsdb-ca-cert for ssl: endpoint \"ssl:127.0.0.1:6640\": \
             ssl needs a private key, a certificate and a CA's certificate"
        );
        assert!(args(&["--ovsdb="]).unwrap().ovsdb_endpoint().unwrap().is_none());
    }

    #[test]
    fn a_node_name_that_no_node_can_have_is_refused() {
        for bad in ["", "Node1", "node_1", "-node", "node/1"] {
            assert!(Args::try_parse_from(["mooring-agent", "--node", bad]).is_err(), "{bad:?}");
        }
    }
}
