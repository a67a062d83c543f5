//! The contracts between the services and with everybody else: the gRPC services, the payloads of the events, and the
//! consistency token. What is public here is promised; `buf.yaml` and the golden files in `tests/` keep it so.

mod consistency_token;
pub mod events;

pub use consistency_token::{Aggregate, ConsistencyToken, MalformedToken};

/// Every message and service as a serialized `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

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
