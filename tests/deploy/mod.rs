//! The files of `deploy/`, each tested with the program that reads it.
//!
//! Promises that manifests, configurations and the plug-in work as they are shipped, and name only
//! options, ports and paths that the product has.

mod compose;
mod custom_resources;
mod dashboard;
mod debian;
mod helm;
mod image;
mod install;
mod kubernetes;
mod kustomize;
mod manifests;
mod monitoring;
mod nginx;
mod plugin;
mod prometheus;
mod prometheus_tls;
mod rules;
mod runbook;
mod systemd;
mod ui;
