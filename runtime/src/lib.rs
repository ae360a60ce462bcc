//! What a long-lived process needs: logging, shutdown, back-off. Knows nothing of ours.

pub mod backoff;
pub mod log;
pub mod shutdown;

pub use backoff::Backoff;
pub use shutdown::Shutdown;
