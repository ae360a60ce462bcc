//! Which networks a pod gets from annotations and lookups, against recordings of Multus.

use super::*;
use cni::{AddResult, NetConfList, Version};
use model::IfName;
use serde_json::{Map, Value, json};

fn parse(text: &str) -> Result<Vec<Selection>, MetaError> {
    Selection::parse_networks(text, "default")
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn sel(text: &str) -> Selection {
    parse(text).unwrap().remove(0)
}

const LIST: &str = r#"{"cniVersion":"0.3.1","name":"net","plugins":[
    {"type":"cni-macvlan","master":"e","capabilities":{"ips":true,"mac":true},"args":{"cni":{"a":1,"b":1}}},{"type":"coordinator"}]}"#;

fn nad(config: &str) -> Nad {
    Nad { namespace: "kube-system".into(), name: "mv".into(), config: config.into() }
}

#[test]
fn the_short_form_is_read() {
    let l = parse(" a, kube-system/b@eth5 ,c@net9").unwrap();
    let short: Vec<_> = l.iter().map(|s| (s.reference(), s.interface.as_ref().map(|i| i.to_string()))).collect();
    assert_eq!(
        short,
        [("default/a".into(), None), ("kube-system/b".into(), Some("eth5".into())), ("default/c".into(), Some("net9".into()))]
    );
    assert_eq!(parse("").unwrap(), []);
    assert_eq!(parse("  ").unwrap(), []);
}

#[test]
fn the_json_form_is_read_with_every_key() {
    let s = sel(r#"[{"name":"a","namespace":"ns","interface":"net5","ips":["10.6.1.10/16","fd00::5"],"mac":"0a:00:00:00:00:01",
        "cni-args":{"x":1},"default-route":["10.6.0.1","fd00::1"],"portMappings":[{"hostPort":80,"containerPort":80}],
        "bandwidth":{"ingressRate":1},"infiniband-guid":"c2:11","deviceID":"0000:01:00.0","example.com/key":true}]"#);
    assert_eq!(s.reference(), "ns/a");
    assert_eq!(s.interface, Some(name("net5")));
    assert_eq!(s.ips, ["10.6.1.10/16", "fd00::5"]);
    assert_eq!(s.mac.unwrap().to_string(), "0a:00:00:00:00:01");
    assert_eq!(s.cni_args["x"], 1);
    assert_eq!(s.default_route.len(), 2);
    assert_eq!(s.capabilities.keys().collect::<Vec<_>>(), ["bandwidth", "deviceID", "infinibandGUID", "portMappings"]);
    assert_eq!(s.other["example.com/key"], true);
    // Older key, a text for a list, and nulls.
    let s = sel(r#"[{"name":"a","interfaceRequest":"net7","ips":"10.6.1.10","mac":"","namespace":"","bandwidth":null}]"#);
    assert_eq!(
        (s.reference().as_str(), s.interface, s.ips.as_slice()),
        ("default/a", Some(name("net7")), &["10.6.1.10".to_owned()][..])
    );
    assert!(s.mac.is_none() && s.capabilities.is_empty());
}

#[test]
fn malformed_annotations_are_refused_by_name() {
    let a = "annotation k8s.v1.cni.cncf.io/networks";
    assert_eq!(refusal(r#"{"name":"a"}"#), format!("{a}: must be a JSON list of networks"));
    assert!(refusal("[{").starts_with(&format!("{a}: is not valid JSON: ")));
    assert_eq!(refusal(r#"["a"]"#), format!("{a}: element 0: must be an object, is \"a\""));
    assert_eq!(refusal(r#"[{"namespace":"x"}]"#), format!("{a}: element 0: name is missing"));
    assert_eq!(refusal("a/b/c"), format!("{a}: \"a/b/c\" is not of the form [<namespace>/]<name>[@<interface>]"));
    assert_eq!(refusal("a@b@c"), format!("{a}: \"a@b@c\" is not of the form [<namespace>/]<name>[@<interface>]"));
    for bad in ["a,,b", "A", "a_b", "-a", "../x", "a@"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert_eq!(
        refusal("a@abcdefghijklmnop"),
        format!(
            "{a}, network a@abcdefghijklmnop: interface \"abcdefghijklmnop\": interface name \"abcdefghijklmnop\" has 16 bytes, at most 15 are allowed"
        )
    );
    let field = |key: &str, v: &str| refusal(&format!(r#"[{{"name":"a","{key}":{v}}}]"#));
    assert_eq!(
        field("ips", r#"["10.6.1"]"#),
        format!("{a}, network a: ips \"10.6.1\": must be an IP address, with or without a prefix length")
    );
    assert_eq!(field("ips", "5"), format!("{a}, network a: ips 5: must be a list of addresses"));
    assert_eq!(field("ips", r#"["10.6.1.1","10.6.1.1"]"#), format!("{a}, network a: ips \"10.6.1.1\": occurs twice"));
    assert_eq!(
        field("mac", r#""x""#),
        format!("{a}, network a: mac \"x\": hardware address \"x\" is not six hexadecimal bytes joined by ':' (or '-')")
    );
    assert_eq!(field("cni-args", "[]"), format!("{a}, network a: cni-args []: must be an object"));
    assert_eq!(field("default-route", r#"["x"]"#), format!("{a}, network a: default-route \"x\": must be an IP address"));
    assert_eq!(
        field("default-route", r#"["10.0.0.1","10.0.0.2"]"#),
        format!("{a}, network a: default-route [\"10.0.0.1\",\"10.0.0.2\"]: must have at most one gateway of each family")
    );
}

#[test]
fn interfaces_are_named_by_place() {
    let names = |text: &str| {
        interface_names(&parse(text).unwrap(), &name("eth0")).map(|l| l.iter().map(|n| n.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(names("a,b@x,c").unwrap(), ["net1", "x", "net3"]);
    assert_eq!(names("a,a").unwrap(), ["net1", "net2"]);
    assert_eq!(
        names("a@eth0").unwrap_err().to_string(),
        "annotation k8s.v1.cni.cncf.io/networks, network default/a: interface \"eth0\": is taken by the pod's first interface"
    );
    assert_eq!(
        names("a@net2,b").unwrap_err().to_string(),
        "annotation k8s.v1.cni.cncf.io/networks, network default/b: interface \"net2\": is taken by another network of the pod"
    );
}

#[test]
fn a_default_network_is_one_and_of_kube_system() {
    let p = Selection::parse_default_network;
    assert_eq!(p("ovs-conf").unwrap().unwrap().reference(), "kube-system/ovs-conf");
    assert_eq!(p("default/ovs-conf").unwrap().unwrap().reference(), "default/ovs-conf");
    assert_eq!(p("").unwrap(), None);
    assert_eq!(
        p("a,b").unwrap_err().to_string(),
        "annotation v1.multus-cni.io/default-network: \"a,b\" names 2 networks, one is allowed"
    );
}

#[test]
fn a_definition_is_a_list_a_single_configuration_or_a_name_on_disk() {
    assert_eq!(nad(LIST).list(None).unwrap().plugins.len(), 2);
    let one = nad(r#"{"cniVersion":"1.0.0","type":"ptp"}"#).list(None).unwrap();
    assert_eq!((one.name.as_str(), one.kind(0)), ("mv", "ptp"));
    let empty = nad(" ");
    assert!(empty.is_on_disk());
    let files = [
        ("20-b.conf".to_owned(), r#"{"cniVersion":"1.0.0","name":"mv","type":"second"}"#.to_owned()),
        ("10-a.conflist".to_owned(), r#"{"cniVersion":"1.0.0","name":"mv","plugins":[{"type":"first"}]}"#.to_owned()),
        ("00-x.bak".to_owned(), r#"{"cniVersion":"1.0.0","name":"mv","type":"backup"}"#.to_owned()),
        ("05-broken.conf".to_owned(), "{".to_owned()),
    ];
    assert_eq!(empty.list(delegate::find_on_disk("mv", &files)).unwrap().kind(0), "first");
    assert_eq!(
        empty.list(delegate::find_on_disk("other", &files)).unwrap_err().to_string(),
        "network kube-system/mv: its NetworkAttachmentDefinition has no config, and no file in the CNI configuration directory has the name \"mv\""
    );
    let e = nad("{").list(None).unwrap_err();
    assert!(e.to_string().starts_with("network kube-system/mv: failed to parse the network configuration"), "{e}");
    assert_eq!(e.to_cni().code, 6);
    assert_eq!(nad(r#"{"cniVersion":"7.0.0","type":"ptp"}"#).list(None).unwrap_err().to_cni().code, 1);
}

fn delegate(text: &str, list: &str) -> Result<Delegate, MetaError> {
    let s = sel(text);
    Delegate::additional(&s, nad(list).list(None).unwrap(), name("net1"))
}

#[test]
fn requests_become_runtime_config_and_args() {
    let d = delegate(
        r#"[{"name":"mv","ips":["10.6.1.10"],"mac":"0a:00:00:00:00:01","cni-args":{"b":2,"c":3},"bandwidth":{"ingressRate":1}}]"#,
        LIST,
    )
    .unwrap();
    assert_eq!(
        d.conf(0, None),
        json!({"cniVersion":"0.3.1","name":"net","type":"cni-macvlan","master":"e","capabilities":{"ips":true,"mac":true},
            "args":{"cni":{"a":1,"b":2,"c":3,"ips":["10.6.1.10"]}},
            "runtimeConfig":{"ips":["10.6.1.10"],"mac":"0a:00:00:00:00:01"}})
    );
    // A plugin that declares nothing gets no runtimeConfig, and the arguments all the same.
    let second = d.conf(1, Some(&AddResult::default()));
    assert_eq!((second.get("runtimeConfig"), &second["args"]["cni"]["c"]), (None, &json!(3)));
    assert_eq!(second["prevResult"], json!({"cniVersion":"0.3.1","dns":{}}));
}

#[test]
fn ips_and_mac_need_a_plugin_that_takes_them() {
    let bare = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"},{"type":"tuning","capabilities":{"ips":false}}]}"#;
    let e = delegate(r#"[{"name":"mv","ips":["10.6.1.10"]}]"#, bare).unwrap_err();
    assert_eq!(
        e.to_string(),
        "network default/mv: ips [\"10.6.1.10\"]: needs a plugin with the capability \"ips\", and none of ptp, tuning declares it"
    );
    assert_eq!(e.to_cni().code, 7);
    assert!(delegate(r#"[{"name":"mv","mac":"0a:00:00:00:00:01"}]"#, bare).is_err());
    // What is merely on offer is dropped without a word, as libcni does.
    assert!(
        delegate(r#"[{"name":"mv","bandwidth":{"ingressRate":1}}]"#, bare).unwrap().conf(0, None).get("runtimeConfig").is_none()
    );
}

#[test]
fn the_runtimes_own_data_goes_to_the_first_network_only() {
    let runtime = json!({"portMappings":[{"hostPort":80}],"ips":["10.9.9.9"]});
    let list = NetConfList::parse(r#"{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"ptp"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#).unwrap();
    let d = Delegate::primary("cbr0", list, name("eth0"), None, runtime.as_object().unwrap()).unwrap();
    assert_eq!(d.conf(1, None)["runtimeConfig"], json!({"portMappings":[{"hostPort":80}]}));
    assert_eq!(d.reference, "cbr0");
    let s = sel(r#"[{"name":"mv","ips":["10.6.1.10"]}]"#);
    let d = Delegate::primary("", nad(LIST).list(None).unwrap(), name("eth0"), Some(&s), runtime.as_object().unwrap()).unwrap();
    assert_eq!((d.reference.as_str(), &d.runtime["ips"]), ("default/mv", &json!(["10.6.1.10"])), "the pod's wish wins");
    assert!(delegate(r#"[{"name":"mv"}]"#, LIST).unwrap().runtime.is_empty());
}

#[test]
fn a_delegate_survives_the_journal() {
    for list in [LIST, r#"{"cniVersion":"1.0.0","name":"n","type":"ptp","capabilities":{"ips":true}}"#] {
        let d = delegate(r#"[{"name":"mv","ips":["10.6.1.10"],"default-route":["10.6.0.1"]}]"#, list).unwrap();
        let back = Delegate::from_value(&d.to_value()).unwrap();
        assert_eq!(back.conf(0, None), d.conf(0, None));
        assert_eq!(
            (back.reference, back.ifname, back.runtime, back.default_route),
            (d.reference, d.ifname, d.runtime, d.default_route)
        );
        assert_eq!(back.list.plugins, d.list.plugins);
    }
    assert_eq!(Delegate::from_value(&json!({})), None);
}

#[test]
fn default_route_moves_to_the_network_that_asks() {
    let mut eth0 = delegate(r#"[{"name":"mv"}]"#, LIST).unwrap();
    eth0.ifname = name("eth0");
    let net1 = delegate(r#"[{"name":"mv","default-route":["10.6.0.1"]}]"#, LIST).unwrap();
    let d = DefaultRoutes::of(&[eth0.clone(), net1.clone()]).unwrap();
    assert_eq!(d.v4, Some((name("net1"), "10.6.0.1".parse().unwrap())));
    assert!(d.takes_from(&name("eth0"), true) && !d.takes_from(&name("eth0"), false) && !d.takes_from(&name("net1"), true));
    let r = AddResult::from_value(
        &json!({"routes":[{"dst":"0.0.0.0/0","gw":"10.244.0.1"},{"dst":"::/0","gw":"fd00::1"},{"dst":"10.8.0.0/16"}]}),
    )
    .unwrap();
    assert_eq!(
        d.apply(&name("eth0"), &r).to_value(Version::V1_0_0)["routes"],
        json!([{"dst":"::/0","gw":"fd00::1"},{"dst":"10.8.0.0/16"}])
    );
    assert_eq!(
        d.apply(&name("net1"), &AddResult::default()).to_value(Version::V1_0_0)["routes"],
        json!([{"dst":"0.0.0.0/0","gw":"10.6.0.1"}])
    );
    assert_eq!(
        DefaultRoutes::of(&[net1.clone(), net1]).unwrap_err().to_string(),
        "network default/mv: default-route 10.6.0.1: net1 is to have the default route of that family already"
    );
    assert_eq!(DefaultRoutes::of(&[eth0]).unwrap(), DefaultRoutes::default());
}

#[test]
fn status_has_the_shape_that_multus_writes() {
    let r = AddResult::from_value(&json!({
        "interfaces":[{"name":"veth1","mac":"fe:00:00:00:00:01"},{"name":"net1","mac":"0a:58:0a:06:01:0a","sandbox":"/run/netns/a","mtu":1400}],
        "ips":[{"address":"10.6.1.10/16","interface":1}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.6.0.1"},{"dst":"10.8.0.0/16","gw":"10.6.0.9"}]}))
    .unwrap();
    let s = NetworkStatus::of("kube-system/mv", &name("net1"), &r, false);
    assert_eq!(
        status::annotation(&[s]),
        r#"[
  {
    "name": "kube-system/mv",
    "interface": "net1",
    "ips": [
      "10.6.1.10"
    ],
    "mac": "0a:58:0a:06:01:0a",
    "mtu": 1400,
    "dns": {},
    "gateway": [
      "10.6.0.1"
    ]
  }
]"#
    );
    assert_eq!(
        serde_json::to_value(NetworkStatus::of("cbr0", &name("eth0"), &AddResult::default(), true)).unwrap(),
        json!({"name":"cbr0","interface":"eth0","default":true,"dns":{}})
    );
}

fn empty() -> Map<String, Value> {
    Map::new()
}

#[test]
fn a_primary_without_runtime_data_has_none() {
    let d = Delegate::primary("cbr0", NetConfList::parse(LIST).unwrap(), name("eth0"), None, &empty()).unwrap();
    assert!(d.runtime.is_empty());
}
