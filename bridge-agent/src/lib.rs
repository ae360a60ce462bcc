//! bridge-agent
