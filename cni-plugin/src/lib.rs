//! What the main plugins (macvlan, ovs) have in common: between CNI's words and the planner's.
//! Knows no particular kind of link. Pure but for `alone` (a feature), in which a plugin's own process does the work.

#[cfg(feature = "alone")]
pub mod alone;
pub mod attach;
pub mod fields;
pub mod garbage;
pub mod nic;

pub use attach::{attach_of, check_error, error_of, nic_of, result_of};
pub use fields::Fields;
