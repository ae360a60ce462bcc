//! Pieces of CRD schema that several kinds use: what the API server refuses, in OpenAPI and CEL. Lists and strings have
//! bounds because the API server estimates a rule's cost from them and refuses a CRD that could cost too much.
//! The same rules again, with what CEL cannot say, are `convert`'s: an object may have been stored before its rule.

use schemars::{Schema, SchemaGenerator, json_schema};

/// The API server estimates a comprehension over `split` by the string's length, so the two ends are taken by index: a
/// tenth of the cost, and lists may be long. The pattern makes sure that there are one or two.
const RANGE: &str = "^[0-9a-fA-F.:]+(-[0-9a-fA-F.:]+)?$";
const IS_RANGE: &str = "isIP(self.split('-')[0]) && isIP(self.split('-')[self.split('-').size() - 1])";
const ONE_FAMILY: &str = "!isIP(self.split('-')[0]) || !isIP(self.split('-')[self.split('-').size() - 1]) \
     || ip(self.split('-')[0]).family() == ip(self.split('-')[self.split('-').size() - 1]).family()";
/// CEL cannot compare addresses; those of IPv4 are four small numbers. IPv6 is left to `convert`.
const ASCENDING: &str = "!self.matches('^[0-9.]+-[0-9.]+$') || !isIP(self.split('-')[0]) || !isIP(self.split('-')[1]) \
     || int(self.split('-')[0].split('.')[0]) * 16777216 + int(self.split('-')[0].split('.')[1]) * 65536 \
     + int(self.split('-')[0].split('.')[2]) * 256 + int(self.split('-')[0].split('.')[3]) \
     <= int(self.split('-')[1].split('.')[0]) * 16777216 + int(self.split('-')[1].split('.')[1]) * 65536 \
     + int(self.split('-')[1].split('.')[2]) * 256 + int(self.split('-')[1].split('.')[3])";

/// `ips` and `excludeIPs`. Two IPv6 addresses and a hyphen are 79 bytes.
pub(crate) fn ranges(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 1024,
        "items": {
            "type": "string",
            "maxLength": 79,
            "pattern": RANGE,
            "x-kubernetes-validations": [
                {"rule": IS_RANGE, "message": "must be an address or a range a-b without spaces"},
                {"rule": ONE_FAMILY, "message": "a range must lie in one family"},
                {"rule": ASCENDING, "message": "a range must not end before it begins"},
            ],
        },
    })
}

/// Networks, or addresses that stand for their /32 or /128.
pub(crate) fn cidrs_or_ips(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "nullable": true,
        "maxItems": 256,
        "items": {
            "type": "string",
            "maxLength": 43,
            "x-kubernetes-validations": [
                {"rule": "isIP(self) || isCIDR(self)", "message": "must be a network or an address"},
                {"rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()", "message": "a network must not have host bits set"},
            ],
        },
    })
}

/// Names of objects, perhaps with a namespace before them: bounded only.
pub(crate) fn names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 1024, "items": {"type": "string", "minLength": 1, "maxLength": 317}})
}

/// One to sixteen parents.
pub(crate) fn masters(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 16, "items": if_name()})
}

/// Two to eight members of a bond.
pub(crate) fn bond_members(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 2,
        "maxItems": 8,
        "items": if_name(),
        "x-kubernetes-validations": [{"rule": "self.all(a, self.exists_one(b, a == b))", "message": "an interface must not be named twice"}],
    })
}

/// VLAN ids and ascending ranges of them, 1 to 4094.
pub(crate) fn vlans(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 256,
        "items": {
            "type": "string",
            "maxLength": 9,
            "pattern": "^[1-9][0-9]{0,3}(-[1-9][0-9]{0,3})?$",
            "x-kubernetes-validations": [{
                "rule": "!self.matches('^[0-9]+(-[0-9]+)?$') || (self.split('-').all(v, int(v) >= 1 && int(v) <= 4094) && self.split('-').map(v, int(v)).isSorted())",
                "message": "must be a vlan of 1 to 4094, or an ascending range of them",
            }],
        },
    })
}

/// As the kernel's `dev_valid_name` has it.
fn if_name() -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 15, "pattern": "^[^/:\\s]+$"})
}
