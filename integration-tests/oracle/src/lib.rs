//! The leak oracle: reads hosts, journals, spools and the API, and says what is duplicate, leaked or stale. It shares no code
//! with the product and knows it by its documented forms only: marks on links and OVS rows, the journal's lines, the objects.
//!
//! Reading ([`machine`], [`api`], [`wire`]) gives [`facts::Facts`], plain values; [`judge`] says what is wrong with them.

pub mod api;
pub mod facts;
pub mod journal;
pub mod judge;
pub mod machine;
pub mod wire;
