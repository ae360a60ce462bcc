//! mooring-agent.

fn main() {}
