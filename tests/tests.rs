//! Tests of the program as its users meet it: processes, exit codes, files.

mod support;

mod bad_input;
mod commands;
mod crash;
mod readers;
