//! Compiles the .proto files with protox, which does not require protoc.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 3] = [
    "money/v1/money.proto",
    "order/v1/order.proto",
    "user/v1/user.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
