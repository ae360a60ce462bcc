//! What the main plugins (macvlan, ovs) have in common: between CNI's words and the planner's. Pure.
//! Knows no particular kind of link.

pub mod attach;
pub mod fields;
pub mod nic;

pub use attach::{attach_of, check_error, error_of, nic_of, result_of};
pub use fields::Fields;
