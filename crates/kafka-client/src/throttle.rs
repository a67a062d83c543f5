//! Throttling by client quotas. The broker responds at once with a throttle time, and reads nothing more from the
//! connection until it is over (KIP-219).

use std::time::Duration;

use kafka_protocol::messages::{
    ApiVersionsResponse, DescribeConfigsResponse, FindCoordinatorResponse, InitProducerIdResponse,
    MetadataResponse, OffsetForLeaderEpochResponse, ProduceResponse, SaslAuthenticateResponse,
    SaslHandshakeResponse,
};

/// The limit on a throttle time. A broker that does not read for longer is treated as silent.
const MAX_THROTTLE: Duration = Duration::from_mins(10);

/// A response that may announce a throttle time.
pub trait Throttled {
    /// In milliseconds; 0 if the client is within its quotas.
    fn throttle_time_ms(&self) -> i32;

    /// Returns the time for which the broker does not read from the connection, at most ten minutes.
    fn throttle_time(&self) -> Duration {
        let millis = u64::try_from(self.throttle_time_ms()).unwrap_or(0);
        Duration::from_millis(millis).min(MAX_THROTTLE)
    }
}

macro_rules! impl_throttled {
    ($($response:ty),* $(,)?) => {
        $(impl Throttled for $response {
            fn throttle_time_ms(&self) -> i32 {
                self.throttle_time_ms
            }
        })*
    };
}

impl_throttled!(
    ApiVersionsResponse,
    DescribeConfigsResponse,
    FindCoordinatorResponse,
    InitProducerIdResponse,
    MetadataResponse,
    OffsetForLeaderEpochResponse,
    ProduceResponse,
);

/// Authentication is not throttled.
impl Throttled for SaslHandshakeResponse {
    fn throttle_time_ms(&self) -> i32 {
        0
    }
}

/// Authentication is not throttled.
impl Throttled for SaslAuthenticateResponse {
    fn throttle_time_ms(&self) -> i32 {
        0
    }
}
