//! The public contracts: the gRPC services, the payloads of the events, and the consistency token. `buf.yaml` and the
//! golden files in `tests/` detect breaking changes.

/// The codec of the generated clients and servers.
pub mod codec;
mod consistency_token;
pub mod events;

use chrono::{DateTime, Utc};

pub use consistency_token::{Aggregate, ConsistencyToken, MalformedToken};

/// Every message and service as a serialized `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Converts a time to a protobuf `Timestamp`.
pub fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    // chrono represents a leap second as 10^9 nanoseconds or more.
    let nanos = i32::try_from(time.timestamp_subsec_nanos().min(999_999_999)).unwrap_or_default();
    prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos,
    }
}

/// `money.v1`: an amount in one currency.
pub mod money {
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("money.v1");
    }
}

/// `order.v1.OrderService`, its client, its server and its messages.
pub mod order {
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("order.v1");
    }
}

/// `user.v1.UserService`, its client, its server and its messages.
pub mod user {
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("user.v1");
    }
}
