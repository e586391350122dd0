//! Tests of the program as its users meet it: processes, exit codes, files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

mod bad_input;
mod chat;
mod commands;
mod crash;
mod hub;
mod kept;
mod models;
mod readers;
mod verdicts;
