//! The keys of ovs-cni's network configuration and of its flat file, checked.

use cni::{Request, Verb};
use cni_plugin::fields::{Fields, wrong};
use model::{BridgeName, Mtu, Tag, Trunks};
use planner::Refusal;
use serde_json::{Map, Value};

/// Where ovs-cni looks for its flat file when `configuration_path` names none; the first that is there counts.
pub const FLAT_FILES: [&str; 2] = ["/etc/kubernetes/cni/net.d/ovs.d/ovs.conf", "/etc/cni/net.d/ovs.d/ovs.conf"];

/// Keys that are ovs-cni's own, and which its flat file may give where the network configuration does not. In the network
/// configuration also `configuration_path`, which names that file; `cni::conf::KEYS` are everybody's.
pub const KEYS: &[&str] = &[
    "bridge",
    "vlan",
    "vlan_mode",
    "mtu",
    "trunk",
    "deviceID",
    "ofport_request",
    "interface_type",
    "socket_file",
    "link_state_check_retries",
    "link_state_check_interval",
];
/// Of an entry of `trunk`.
pub const TRUNK_KEYS: &[&str] = &["id", "minID", "maxID"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    pub bridge: BridgeName,
    pub vlans: Vlans,
    /// None (absent or 0): 1500, or the uplink's where that is less.
    pub mtu: Option<Mtu>,
    pub ofport_request: Option<u16>,
    /// `Interface.type`: empty, `system` or `internal`.
    pub interface_type: String,
    /// Path of OVSDB's socket; none: the default one. The agent has its own and only compares.
    pub socket_file: Option<String>,
    /// `Interface.external_ids:iface-id`, what OVN binds a logical port by.
    pub iface_id: Option<String>,
    /// `vlan` that has no effect beside `trunk`, as in ovs-cni: worth telling the user.
    pub dropped_vlan: Option<Tag>,
}

/// How a port stands to VLANs: `vlan_mode` of ovs-vswitchd.conf.db(5), which the key of the same name asks for (the name that
/// ovs-cni's pull request 261 proposes). Without the key, ovs-cni's truth table: `vlan` alone is access, all else a trunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vlans {
    /// `vlan`, also 0, and no `trunk`.
    Access(Tag),
    /// `trunk`; empty carries all VLANs (neither `vlan` nor `trunk`).
    Trunk(Trunks),
    /// A trunk on which frames without a tag are of VLAN `native`; towards the pod that VLAN has its tag.
    NativeTagged { native: Tag, trunks: Trunks },
    /// A trunk on which frames without a tag are of VLAN `native`, both ways.
    NativeUntagged { native: Tag, trunks: Trunks },
    /// Whatever the pod sends, tagged or not, travels in this service VLAN (802.1ad).
    Dot1qTunnel(Tag),
}

impl Vlans {
    /// `Port.vlan_mode`.
    pub const fn mode(&self) -> &'static str {
        match self {
            Vlans::Access(_) => "access",
            Vlans::Trunk(_) => "trunk",
            Vlans::NativeTagged { .. } => "native-tagged",
            Vlans::NativeUntagged { .. } => "native-untagged",
            Vlans::Dot1qTunnel(_) => "dot1q-tunnel",
        }
    }

    /// `Port.tag` and `Port.trunks`.
    pub fn columns(&self) -> (Option<Tag>, Trunks) {
        match self {
            Vlans::Access(tag) | Vlans::Dot1qTunnel(tag) => (Some(*tag), Trunks::default()),
            Vlans::Trunk(trunks) => (None, trunks.clone()),
            Vlans::NativeTagged { native, trunks } | Vlans::NativeUntagged { native, trunks } => (Some(*native), trunks.clone()),
        }
    }
}

impl Conf {
    /// `flat`: text of the flat file, where there is one (`flat_file_of` says which). At DEL nothing is refused: whatever ADD was
    /// told, what it left must go.
    pub fn parse(request: &Request, flat: Option<&str>) -> Result<Self, Refusal> {
        let parsed = Self::strict(request, flat);
        if request.verb != Verb::Del {
            return parsed;
        }
        Ok(parsed.unwrap_or_else(|_| Self {
            bridge: BridgeName::new("unknown").expect("a short word"),
            vlans: Vlans::Trunk(Trunks::default()),
            mtu: None,
            ofport_request: None,
            interface_type: String::new(),
            socket_file: request.conf.raw().get("socket_file").and_then(Value::as_str).and_then(|s| socket(s).ok()),
            iface_id: None,
            dropped_vlan: None,
        }))
    }

    /// Files to look for, in order; the first that is there is `flat`. As in ovs-cni, one that the configuration names and that
    /// is not there is passed over.
    pub fn flat_file_of(request: &Request) -> Result<Vec<String>, Refusal> {
        let named = Fields::of(request.conf.raw(), &["configuration_path"]).text("configuration_path")?;
        Ok(named.into_iter().chain(FLAT_FILES).map(str::to_owned).collect())
    }

    fn strict(request: &Request, flat: Option<&str>) -> Result<Self, Refusal> {
        let merged = merge(request.conf.raw(), flat)?;
        let f = Fields::of(&merged, KEYS);
        if let Some(device) = f.text("deviceID")? {
            return Err(wrong("deviceID", device, "hardware offload and vDPA are not supported, only veth"));
        }
        let iface_id = ovn_port(request)?;
        let bridge = match (f.text("bridge")?, &iface_id) {
            (Some(name), _) => BridgeName::new(name).map_err(|e| wrong("bridge", name, e))?,
            (None, Some(_)) => BridgeName::new("br-int").expect("OVN's name for its bridge"),
            (None, None) => return Err(wrong("bridge", "", "is missing")),
        };
        let tag = match f.number("vlan")? {
            None => None,
            Some(n) => Some(Tag::new(n).map_err(|e| wrong("vlan", n, e))?),
        };
        let (vlans, dropped_vlan) = vlans(f.text("vlan_mode")?, tag, f.list("trunk")?)?;
        let mtu = match f.number("mtu")? {
            None | Some(0) => None,
            Some(n) if n < 0 => return Err(wrong("mtu", n, "must be 0 (the default) or more")),
            Some(n) => Some(Mtu::new(n.unsigned_abs()).map_err(|e| wrong("mtu", n, e))?),
        };
        let ofport_request = match f.number("ofport_request")? {
            None | Some(0) => None,
            Some(n) => Some(
                u16::try_from(n)
                    .ok()
                    .filter(|p| *p <= 65279)
                    .ok_or_else(|| wrong("ofport_request", n, "must be from 1 to 65279"))?,
            ),
        };
        let interface_type = match f.text("interface_type")? {
            None => String::new(),
            Some(t @ ("system" | "internal")) => t.to_owned(),
            Some(t) => return Err(wrong("interface_type", t, "must be empty, system or internal")),
        };
        // Accepted for the sake of old configurations: we wait for OVSDB's own notice, so there is nothing to poll.
        f.number("link_state_check_retries")?;
        f.number("link_state_check_interval")?;
        let socket_file = f.text("socket_file")?.map(socket).transpose()?;
        Ok(Self { bridge, vlans, mtu, ofport_request, interface_type, socket_file, iface_id, dropped_vlan })
    }
}

/// The configuration's own values win over the flat file's.
fn merge(raw: &Map<String, Value>, flat: Option<&str>) -> Result<Map<String, Value>, Refusal> {
    let mut merged = raw.clone();
    let Some(text) = flat else { return Ok(merged) };
    let file = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(o)) => o,
        Ok(_) => return Err(wrong("configuration_path", "", "the file is not a JSON object")),
        Err(e) => return Err(wrong("configuration_path", "", format!("the file is not JSON: {e}"))),
    };
    for &key in KEYS {
        // What Go's decoder leaves at its zero value counts as absent.
        let absent = match merged.get(key) {
            None | Some(Value::Null) => true,
            // `vlan` is a pointer there: 0 is a value.
            Some(Value::String(s)) => s.is_empty(),
            Some(Value::Array(a)) => a.is_empty(),
            Some(v) => v.as_i64() == Some(0) && key != "vlan",
        };
        if let (true, Some(v)) = (absent, file.get(key)) {
            merged.insert(key.to_owned(), v.clone());
        }
    }
    Ok(merged)
}

/// `args.cni.ovnPort` wins over `CNI_ARGS` `OvnPort`, as the MAC does.
fn ovn_port(request: &Request) -> Result<Option<String>, Refusal> {
    match request.conf.args_cni("ovnPort") {
        None | Some(Value::Null) => {}
        Some(Value::String(s)) if s.is_empty() => {}
        Some(Value::String(s)) => return Ok(Some(s.clone())),
        Some(v) => return Err(wrong("args.cni.ovnPort", v, "must be a string")),
    }
    Ok(request.args.get("OvnPort").map(str::to_owned))
}

/// What the three keys mean together. A `vlan` beside a `trunk` is dropped by ovs-cni without a word, and SpiderMultusConfig
/// renders `vlan: 0` beside every trunk, so refusing it would break what works; the second part of the answer tells. Who names
/// the mode says what is meant: there nothing is dropped.
fn vlans(mode: Option<&str>, tag: Option<Tag>, trunk: &[Value]) -> Result<(Vlans, Option<Tag>), Refusal> {
    // 0 is no VLAN of its own (802.1Q), and what is rendered where none is meant.
    let vlan = tag.filter(|t| t.get() != 0);
    let needed = |mode: &str, what: &str| vlan.ok_or_else(|| wrong("vlan_mode", mode, format!("needs vlan, 1 to 4094, {what}")));
    let no_trunk = |mode: &str| match trunk.is_empty() {
        true => Ok(()),
        false => Err(wrong("vlan_mode", mode, "carries one VLAN, there must be no trunk beside it")),
    };
    let vlans = match mode {
        None => {
            return Ok(match tag {
                Some(tag) if trunk.is_empty() => (Vlans::Access(tag), None),
                _ => (Vlans::Trunk(trunks(trunk)?), vlan),
            });
        }
        Some(mode @ "access") => {
            no_trunk(mode)?;
            Vlans::Access(tag.ok_or_else(|| wrong("vlan_mode", mode, "needs vlan, 0 to 4094, its VLAN"))?)
        }
        Some(mode @ "trunk") => match vlan {
            None => Vlans::Trunk(trunks(trunk)?),
            Some(_) => {
                return Err(wrong("vlan_mode", mode, "has no VLAN of its own, vlan needs native-tagged or native-untagged"));
            }
        },
        Some(mode @ "native-tagged") => Vlans::NativeTagged { native: needed(mode, "the native VLAN")?, trunks: trunks(trunk)? },
        Some(mode @ "native-untagged") => {
            Vlans::NativeUntagged { native: needed(mode, "the native VLAN")?, trunks: trunks(trunk)? }
        }
        Some(mode @ "dot1q-tunnel") => {
            no_trunk(mode)?;
            Vlans::Dot1qTunnel(needed(mode, "the service VLAN")?)
        }
        Some(other) => {
            return Err(wrong(
                "vlan_mode",
                other,
                "must be access, trunk, native-tagged, native-untagged or dot1q-tunnel (ovs-vswitchd.conf.db(5))",
            ));
        }
    };
    Ok((vlans, None))
}

fn trunks(list: &[Value]) -> Result<Trunks, Refusal> {
    let mut out = Trunks::default();
    for (i, entry) in list.iter().enumerate() {
        let at = format!("trunk[{i}]");
        let Value::Object(o) = entry else {
            return Err(wrong(at, entry, "must be an object with id, or with minID and maxID"));
        };
        let f = Fields::of(o, TRUNK_KEYS);
        let tag = |key: &str| -> Result<Option<Tag>, Refusal> {
            let inside = |r: Refusal| Refusal { field: format!("{at}.{}", r.field), ..r };
            f.number(key).map_err(inside)?.map(|n| Tag::new(n).map_err(|e| wrong(format!("{at}.{key}"), n, e))).transpose()
        };
        let (id, min, max) = (tag("id")?, tag("minID")?, tag("maxID")?);
        match (min, max) {
            (Some(min), Some(max)) => out
                .insert_range(min, max)
                .map_err(|_| wrong(format!("{at}.maxID"), max, format!("must not be below minID, which is {min}")))?,
            (Some(min), None) => return Err(wrong(format!("{at}.minID"), min, "needs a maxID beside it")),
            (None, Some(max)) => return Err(wrong(format!("{at}.maxID"), max, "needs a minID beside it")),
            (None, None) if id.is_none() => return Err(wrong(at, entry, "needs an id, or minID and maxID")),
            (None, None) => {}
        }
        if let Some(id) = id {
            out.insert_range(id, id).map_err(|e| wrong(format!("{at}.id"), id, e))?;
        }
    }
    Ok(out)
}

/// `unix:/path` or `/path`. Over TCP the other end could be another host, whose bridge our veth is not on.
fn socket(text: &str) -> Result<String, Refusal> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(wrong("socket_file", text, "must be unix:/path; a database of another host (tcp:, ssl:) is not supported"))
    }
}
