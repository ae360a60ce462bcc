//! Names of annotations, labels, finalizers and resources. Says where each is read; parsing is `annotations`.

/// `bridge.mooring.dev/<bridge>` on a Node: `enabled`, `disabled`, a config's name or a NIC's.
pub const BRIDGE_LABEL_PREFIX: &str = "bridge.mooring.dev/";
/// `ready.mooring.dev/<bridge>` on a Node: `true` while the bridge is ready there.
pub const READY_LABEL_PREFIX: &str = "ready.mooring.dev/";
/// Extended resource of a Node where the bridge is ready (the name that ovs-cni's marker uses).
pub const BRIDGE_RESOURCE_PREFIX: &str = "ovs-cni.network.kubevirt.io/";

/// Immutable, on a pool: the L2 domain that its addresses are unique in.
pub const L2_DOMAIN: &str = "mooring.dev/l2-domain";
/// The domain of a pool that names none.
pub const DEFAULT_L2_DOMAIN: &str = "default";
/// On a pool, `true` or `false`: before a pod uses an address of it, its segment is asked whether somebody else does.
pub const DETECT_CONFLICT: &str = "mooring.dev/detect-conflict";
/// On a pool, `true` or `false`: a pod gets an address of it only where its gateway answers.
pub const DETECT_GATEWAY: &str = "mooring.dev/detect-gateway";
/// `true` on a Bridge or Node stops repair.
pub const PAUSED: &str = "mooring.dev/paused";
/// On a Pod: the addresses it wants.
pub const IPS: &str = "mooring.dev/ips";
/// On pools and Bridges: nothing of it is in use any more.
pub const FINALIZER: &str = "mooring.dev/in-use";

/// On an AddressLease, by `mooring release`: the agentID of its agent, which is declared gone. Another agent's takes no notice.
pub const RELEASED: &str = "mooring.dev/released";
/// On a Node, by the controller: what of the node was fenced, in JSON.
pub const FENCED: &str = "mooring.dev/fenced";
/// Taint by which an administrator says that a node is shut down and stays so (Kubernetes' non-graceful node shutdown).
pub const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Taints of a node that does not answer or is not ready.
pub const TAINTS_UNREACHABLE: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];

/// Labels of AddressLeases.
pub const LEASE_POOL: &str = "mooring.dev/pool";
pub const LEASE_NODE: &str = "mooring.dev/node";
pub const LEASE_CHUNK: &str = "mooring.dev/chunk";
pub const LEASE_IDENTITY: &str = "mooring.dev/identity";

pub const IPPOOL: &str = "ipam.spidernet.io/ippool";
pub const IPPOOLS: &str = "ipam.spidernet.io/ippools";
pub const SUBNET: &str = "ipam.spidernet.io/subnet";
pub const SUBNETS: &str = "ipam.spidernet.io/subnets";
pub const ROUTES: &str = "ipam.spidernet.io/routes";
pub const DEFAULT_ROUTE_NIC: &str = "ipam.spidernet.io/default-route-nic";
/// On a Namespace: JSON arrays of pool names.
pub const NAMESPACE_IPV4_POOLS: &str = "ipam.spidernet.io/default-ipv4-ippool";
pub const NAMESPACE_IPV6_POOLS: &str = "ipam.spidernet.io/default-ipv6-ippool";

/// On a Pod, parsed by `cni-meta`.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// On a NAD.
pub const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";

/// On a SpiderMultusConfig: the NAD's name where it is another one.
pub const CR_NAME: &str = "multus.spidernet.io/cr-name";
/// On a SpiderMultusConfig: the NAD's CNI version.
pub const CNI_VERSION: &str = "multus.spidernet.io/cni-version";
