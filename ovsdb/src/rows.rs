//! Rows of the `Open_vSwitch` database (ovs-vswitchd.conf.db(5)) as structs. Columns that a server lacks keep their
//! default; columns that were asked for and have no field are kept in `other`. Knows no protocol.

use std::collections::{BTreeMap, BTreeSet};

use crate::value::{Atom, Columns, Uuid, Value, ValueError};

/// A row that a replica can keep up to date.
pub trait Row: Clone + Send + Sync + 'static {
    /// Columns that have a field.
    const COLUMNS: &'static [&'static str];

    /// A row whose columns all hold the defaults of RFC 7047 section 5.2.1: what the server leaves out.
    fn with_defaults(uuid: Uuid) -> Self;

    fn uuid(&self) -> Uuid;

    /// The name, in tables where it is unique.
    fn name(&self) -> Option<&str>;

    /// Whether `value` (or a difference) fits the column.
    fn check(column: &str, value: &Value) -> Result<(), ValueError>;

    fn set(&mut self, column: &str, value: Value) -> Result<(), ValueError>;

    /// Applies a difference of a composite column.
    fn apply_diff(&mut self, column: &str, diff: Value) -> Result<(), ValueError>;
}

/// A row of a table that has no struct here.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RawRow {
    pub uuid: Uuid,
    /// A column that is absent holds its default.
    pub columns: Columns,
}

impl Row for RawRow {
    const COLUMNS: &'static [&'static str] = &[];

    fn with_defaults(uuid: Uuid) -> Self {
        RawRow { uuid, columns: Columns::new() }
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn check(_column: &str, _value: &Value) -> Result<(), ValueError> {
        Ok(())
    }

    fn set(&mut self, column: &str, value: Value) -> Result<(), ValueError> {
        self.columns.insert(column.to_owned(), value);
        Ok(())
    }

    fn apply_diff(&mut self, column: &str, diff: Value) -> Result<(), ValueError> {
        self.columns.entry(column.to_owned()).or_insert_with(Value::empty).apply_diff(diff);
        Ok(())
    }
}

/// A column's Rust type.
trait Field: Sized {
    fn decode(value: &Value) -> Result<Self, ValueError>;

    /// Sets and maps toggle; the rest takes the new value.
    fn apply(&mut self, diff: Self) {
        *self = diff;
    }
}

/// A scalar's Rust type.
trait Scalar: Sized {
    const EXPECTED: &'static str;
    fn from_atom(atom: &Atom) -> Option<Self>;
}

impl Scalar for String {
    const EXPECTED: &'static str = "a string";
    fn from_atom(atom: &Atom) -> Option<Self> {
        atom.as_str().map(str::to_owned)
    }
}

impl Scalar for i64 {
    const EXPECTED: &'static str = "an integer";
    fn from_atom(atom: &Atom) -> Option<Self> {
        atom.as_integer()
    }
}

impl Scalar for bool {
    const EXPECTED: &'static str = "a boolean";
    fn from_atom(atom: &Atom) -> Option<Self> {
        atom.as_bool()
    }
}

impl Scalar for Uuid {
    const EXPECTED: &'static str = "a UUID";
    fn from_atom(atom: &Atom) -> Option<Self> {
        atom.as_uuid()
    }
}

fn mismatch(value: &Value, expected: &'static str) -> ValueError {
    let value = serde_json::to_string(value).unwrap_or_else(|error| error.to_string());
    ValueError::Type { value, expected }
}

macro_rules! scalar_field {
    ($($scalar:ty),*) => {$(
        impl Field for $scalar {
            fn decode(value: &Value) -> Result<Self, ValueError> {
                value.as_atom().and_then(Self::from_atom).ok_or_else(|| mismatch(value, Self::EXPECTED))
            }
        }
    )*};
}
scalar_field!(String, i64, bool);

impl<T: Scalar> Field for Option<T> {
    fn decode(value: &Value) -> Result<Self, ValueError> {
        match value.as_set() {
            Some([]) => Ok(None),
            Some([atom]) => T::from_atom(atom).map(Some).ok_or_else(|| mismatch(value, T::EXPECTED)),
            _ => Err(mismatch(value, "one scalar or none")),
        }
    }
}

impl<T: Scalar + Ord> Field for BTreeSet<T> {
    fn decode(value: &Value) -> Result<Self, ValueError> {
        let atoms = value.as_set().ok_or_else(|| mismatch(value, "a set"))?;
        atoms.iter().map(|atom| T::from_atom(atom).ok_or_else(|| mismatch(value, T::EXPECTED))).collect()
    }

    fn apply(&mut self, diff: Self) {
        for element in diff {
            if !self.remove(&element) {
                self.insert(element);
            }
        }
    }
}

impl Field for BTreeMap<String, String> {
    fn decode(value: &Value) -> Result<Self, ValueError> {
        let pairs = value.as_map().ok_or_else(|| mismatch(value, "a map"))?;
        pairs
            .iter()
            .map(|(key, text)| match (key, text) {
                (Atom::String(key), Atom::String(text)) => Ok((key.clone(), text.clone())),
                _ => Err(mismatch(value, "a map of strings")),
            })
            .collect()
    }

    fn apply(&mut self, diff: Self) {
        for (key, value) in diff {
            if self.get(&key) == Some(&value) {
                self.remove(&key);
            } else {
                self.insert(key, value);
            }
        }
    }
}

macro_rules! row {
    (@name $row:ident named) => { Some(&$row.name) };
    (@name $row:ident unnamed) => { None };
    (
        $(#[$attribute:meta])*
        $struct:ident, $kind:ident;
        $( $(#[$field_attribute:meta])* $column:literal $field:ident: $type:ty, )*
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct $struct {
            pub uuid: Uuid,
            $( $(#[$field_attribute])* pub $field: $type, )*
            /// Columns that were asked for and have no field here; an absent one holds its default.
            pub other: Columns,
        }

        impl Row for $struct {
            const COLUMNS: &'static [&'static str] = &[$($column),*];

            fn with_defaults(uuid: Uuid) -> Self {
                $struct { uuid, ..Default::default() }
            }

            fn uuid(&self) -> Uuid {
                self.uuid
            }

            fn name(&self) -> Option<&str> {
                row!(@name self $kind)
            }

            fn check(column: &str, value: &Value) -> Result<(), ValueError> {
                match column {
                    $( $column => <$type as Field>::decode(value).map(drop), )*
                    _ => Ok(()),
                }
            }

            fn set(&mut self, column: &str, value: Value) -> Result<(), ValueError> {
                match column {
                    $( $column => self.$field = Field::decode(&value)?, )*
                    _ => drop(self.other.insert(column.to_owned(), value)),
                }
                Ok(())
            }

            fn apply_diff(&mut self, column: &str, diff: Value) -> Result<(), ValueError> {
                match column {
                    $( $column => Field::apply(&mut self.$field, Field::decode(&diff)?), )*
                    _ => self.other.entry(column.to_owned()).or_insert_with(Value::empty).apply_diff(diff),
                }
                Ok(())
            }
        }
    };
}

type Strings = BTreeMap<String, String>;

row! {
    /// The one row of table `Open_vSwitch`.
    OpenVSwitch, unnamed;
    "bridges" bridges: BTreeSet<Uuid>,
    /// Number of the configuration that ovs-vswitchd has applied.
    "cur_cfg" cur_cfg: i64,
    /// Number of the configuration that was asked for last.
    "next_cfg" next_cfg: i64,
    /// This and the next three are written by OVS's start scripts, not by its daemons.
    "ovs_version" ovs_version: Option<String>,
    "db_version" db_version: Option<String>,
    "system_type" system_type: Option<String>,
    "system_version" system_version: Option<String>,
    /// Filled by ovs-vswitchd at its start: `netdev`, `system`.
    "datapath_types" datapath_types: BTreeSet<String>,
    "iface_types" iface_types: BTreeSet<String>,
    "external_ids" external_ids: Strings,
    "other_config" other_config: Strings,
}

row! {
    Bridge, named;
    "name" name: String,
    "ports" ports: BTreeSet<Uuid>,
    /// `standalone` or `secure`; none is `standalone`.
    "fail_mode" fail_mode: Option<String>,
    "mcast_snooping_enable" mcast_snooping_enable: bool,
    "stp_enable" stp_enable: bool,
    "rstp_enable" rstp_enable: bool,
    /// `system` (also written as empty) or `netdev`.
    "datapath_type" datapath_type: String,
    /// 16 hexadecimal digits, set by ovs-vswitchd.
    "datapath_id" datapath_id: Option<String>,
    "protocols" protocols: BTreeSet<String>,
    "controller" controller: BTreeSet<Uuid>,
    "mirrors" mirrors: BTreeSet<Uuid>,
    "external_ids" external_ids: Strings,
    /// Among them `hwaddr`.
    "other_config" other_config: Strings,
}

row! {
    Port, named;
    "name" name: String,
    /// More than one is a bond.
    "interfaces" interfaces: BTreeSet<Uuid>,
    /// Access or native VLAN, 0 to 4095.
    "tag" tag: Option<i64>,
    /// VLANs of a trunk; empty is all.
    "trunks" trunks: BTreeSet<i64>,
    /// `access`, `trunk`, `native-tagged`, `native-untagged`, `dot1q-tunnel`; none follows from `tag` and `trunks`.
    "vlan_mode" vlan_mode: Option<String>,
    /// `active-backup`, `balance-slb`, `balance-tcp`.
    "bond_mode" bond_mode: Option<String>,
    /// `active`, `passive`, `off`.
    "lacp" lacp: Option<String>,
    /// Milliseconds.
    "bond_updelay" bond_updelay: i64,
    /// Milliseconds.
    "bond_downdelay" bond_downdelay: i64,
    /// MAC address of the active member, set by ovs-vswitchd.
    "bond_active_slave" bond_active_slave: Option<String>,
    "mac" mac: Option<String>,
    "fake_bridge" fake_bridge: bool,
    "external_ids" external_ids: Strings,
    "other_config" other_config: Strings,
}

row! {
    /// `statistics` is not among the columns: it changes every few seconds on every row.
    Interface, named;
    "name" name: String,
    /// Empty is `system`; `internal`, `patch`, `vxlan`, ...
    "type" r#type: String,
    /// OpenFlow port number once ovs-vswitchd has opened the device; -1 when it could not.
    "ofport" ofport: Option<i64>,
    "ofport_request" ofport_request: Option<i64>,
    "ifindex" ifindex: Option<i64>,
    "mtu" mtu: Option<i64>,
    "mtu_request" mtu_request: Option<i64>,
    /// The address asked for.
    "mac" mac: Option<String>,
    /// The address the device has.
    "mac_in_use" mac_in_use: Option<String>,
    /// `up` or `down`.
    "link_state" link_state: Option<String>,
    /// `up` or `down`.
    "admin_state" admin_state: Option<String>,
    /// Why ovs-vswitchd could not configure the interface.
    "error" error: Option<String>,
    "options" options: Strings,
    "external_ids" external_ids: Strings,
    "other_config" other_config: Strings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_each_shape_are_set() {
        let mut port = Port::with_defaults(Uuid::from_bytes([7; 16]));
        port.set("name", "p0".into()).unwrap();
        port.set("tag", 5.into()).unwrap();
        port.set("trunks", 7.into()).unwrap();
        port.set("external_ids", Value::map([("a", "b")])).unwrap();
        port.set("interfaces", Uuid::ZERO.into()).unwrap();
        port.set("fake_bridge", true.into()).unwrap();
        port.set("qos", Value::empty()).unwrap();
        assert_eq!((port.name(), port.tag, port.fake_bridge), (Some("p0"), Some(5), true));
        assert_eq!(port.trunks, BTreeSet::from([7]));
        assert_eq!(port.other, Columns::from([("qos".to_owned(), Value::empty())]));
        port.set("tag", Value::empty()).unwrap();
        assert_eq!(port.tag, None);
    }

    #[test]
    fn differences_toggle_sets_and_maps() {
        let mut port = Port { trunks: BTreeSet::from([1, 2]), ..Default::default() };
        port.apply_diff("trunks", Value::from(vec![2, 3])).unwrap();
        assert_eq!(port.trunks, BTreeSet::from([1, 3]));
        port.external_ids = Strings::from([("gone".into(), "1".into()), ("new".into(), "1".into())]);
        port.apply_diff("external_ids", Value::map([("gone", "1"), ("new", "2"), ("added", "3")])).unwrap();
        assert_eq!(port.external_ids, Strings::from([("new".into(), "2".into()), ("added".into(), "3".into())]));
        port.apply_diff("qos", Value::from("x")).unwrap();
        port.apply_diff("qos", Value::from("x")).unwrap();
        assert!(port.other["qos"].same(&Value::empty()));
    }

    #[test]
    fn values_of_the_wrong_type_are_refused_and_change_nothing() {
        let mut row = Interface { ofport: Some(3), ..Default::default() };
        for (column, value) in [
            ("ofport", Value::from("3")),
            ("ofport", Value::from(vec![1, 2])),
            ("name", Value::empty()),
            ("external_ids", Value::map([("a", 1)])),
            ("external_ids", Value::from("a")),
        ] {
            assert!(Interface::check(column, &value).is_err(), "{column}");
            assert!(row.set(column, value).is_err(), "{column}");
        }
        assert_eq!(row, Interface { ofport: Some(3), ..Default::default() });
        let text = row.set("ofport", "x".into()).unwrap_err().to_string();
        assert_eq!(text, "value \"x\" is not an integer");
    }
}
