//! Rebuilds the crate when a migration changes: cargo does not watch files that a macro embeds.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
