//! Migrations are embedded by a macro, whose files cargo does not watch by itself.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
