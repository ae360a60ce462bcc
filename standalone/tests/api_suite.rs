//! The API suite against the server in this process and over its socket: see the next commit.
