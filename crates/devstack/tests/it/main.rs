//! Tests of the tools with which other tests inject faults.

mod proxy;
