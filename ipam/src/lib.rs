//! Addresses: ranges, pools, which pools a NIC may use, which free address it takes, what a lease allows, and the counts.
//! Values in, values out: knows nothing of API objects, clocks or where randomness comes from.

pub mod choice;
pub mod fixed;
pub mod fleet;
pub mod lease;
pub mod machine;
pub mod pool;
pub mod ranges;
pub mod share;
pub mod sighting;
pub mod window;

pub use choice::{Ask, ChoiceError, Choices, FamilyNames, NicEntry, NicOfPod, NicPools, Rejection, Source, Sources, choose};
pub use fixed::{Decision, Me, RequestError, check_request, decide};
pub use lease::{Holder, Identity, IdentityKind, Lease, Name, Quarantine, Wanted};
pub use pool::{Overlap, Pool, PoolError, PoolSpec, Pools};
pub use ranges::{Family, RangeError, Ranges};
pub use share::{Share, share};
pub use window::{Chunk, Counts, Learned, LeaseState, Picker, Tried, Window, counts, spares_per_node};
