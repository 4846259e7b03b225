//! The files of `deploy/`, each tested with the program that reads it.
//!
//! Promises that manifests, configurations and the plug-in work as they are shipped, and name only
//! options, ports and paths that the product has.

mod install;
mod manifests;
mod nginx;
mod plugin;
mod prometheus;
mod ui;
