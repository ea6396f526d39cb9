//! PID 1 of the Postgres container.

fn main() {}
