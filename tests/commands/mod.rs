//! The command line, as people and programs use it.

mod cli;
mod explain;
mod operator;
