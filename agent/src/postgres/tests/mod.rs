//! Against real Postgres processes, started by a real supervisor.

mod primary;
mod replica;
mod settings;
mod trouble;
