//! Compresses the records of a batch. The codecs and their formats are listed at
//! <https://kafka.apache.org/documentation/#recordbatch>.

use std::io::{self, Write as _};

use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, FrameEncoder, FrameInfo};

use crate::config::Compression;

/// The levels are those of Kafka's own producer.
const GZIP_LEVEL: flate2::Compression = flate2::Compression::new(6);
const ZSTD_LEVEL: i32 = 3;

/// Compresses with the configured codec. Keeps the state of zstd, which is expensive to create.
pub(super) struct Compressor {
    codec: Compression,
    zstd: Option<zstd::zstd_safe::CCtx<'static>>,
}

impl Compressor {
    pub(super) fn new(codec: Compression) -> Self {
        Self { codec, zstd: None }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.codec != Compression::None
    }

    /// Appends the compressed form of `records` to `out`. Returns the codec's number in the attributes of a batch. Returns `None`
    /// without compression, or if an encoder fails.
    pub(super) fn compress(&mut self, records: &[u8], out: &mut Vec<u8>) -> Option<u8> {
        let (number, compressed) = match self.codec {
            Compression::None => return None,
            Compression::Gzip => (1, gzip(records, out)),
            Compression::Lz4 => (3, lz4(records, out)),
            Compression::Zstd => (4, self.zstd(records, out)),
        };
        match compressed {
            Ok(()) => Some(number),
            // Writing to memory does not fail. If it does, the batch is sent uncompressed.
            Err(error) => {
                tracing::warn!(%error, codec = ?self.codec, "failed to compress a batch");
                None
            }
        }
    }

    fn zstd(&mut self, records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let context = self.zstd.get_or_insert_with(|| {
            let mut context = zstd::zstd_safe::CCtx::create();
            let level = zstd::zstd_safe::CParameter::CompressionLevel(ZSTD_LEVEL);
            // A level out of range is clamped.
            let _ = context.set_parameter(level);
            context
        });
        let mut encoder = zstd::stream::write::Encoder::with_context(out, context);
        encoder.set_pledged_src_size(Some(records.len() as u64))?;
        encoder.write_all(records)?;
        encoder.finish().map(drop)
    }
}

fn gzip(records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = GzEncoder::new(out, GZIP_LEVEL);
    encoder.write_all(records)?;
    encoder.finish().map(drop)
}

/// Kafka's decoder requires independent blocks.
fn lz4(records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let info = FrameInfo::new().block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(records)?;
    encoder.finish().map(drop).map_err(io::Error::from)
}
