//! nm-integration
