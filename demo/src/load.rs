use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use proto::order::v1::{CreateOrderRequest, order_service_client::OrderServiceClient};
use tokio::{sync::watch, task::JoinHandle};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::system::{System, money};

/// Concurrent callers.
const CALLERS: usize = 4;
/// Pause of a caller between two calls. It keeps the load steady and below capacity.
const PAUSE: Duration = Duration::from_millis(10);

/// A background load that places orders until [`Load::stop`].
#[derive(Debug)]
pub struct Load {
    callers: Vec<JoinHandle<Placed>>,
    stop: watch::Sender<bool>,
    accepted: Arc<AtomicUsize>,
}

/// The orders that the load placed.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    pub order_ids: Vec<String>,
    /// Failed calls that were retried with the same request id.
    pub repeated: usize,
    /// Duration of the slowest call, including its retries.
    pub slowest: Duration,
}

impl Load {
    /// Starts placing orders for these users.
    pub fn start(system: &System, user_ids: &[String]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let accepted = Arc::<AtomicUsize>::default();
        let callers = (0..CALLERS)
            .map(|caller| {
                let user_ids = user_ids
                    .iter()
                    .skip(caller)
                    .step_by(CALLERS)
                    .cloned()
                    .collect();
                let caller = place_orders(
                    system.orders(),
                    user_ids,
                    stopped.clone(),
                    Arc::clone(&accepted),
                );
                tokio::spawn(caller)
            })
            .collect();
        Self {
            callers,
            stop,
            accepted,
        }
    }

    /// Returns the number of accepted orders so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until this many more orders are accepted.
    pub async fn wait_accepted(&self, more: usize) {
        let target = self.accepted() + more;
        while self.accepted() < target {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops the load after all calls in progress have completed.
    ///
    /// # Errors
    /// If a caller panicked.
    pub async fn stop(self) -> Result<Placed> {
        self.stop.send_replace(true);
        let mut all = Placed::default();
        for caller in self.callers {
            let placed = caller.await?;
            all.order_ids.extend(placed.order_ids);
            all.repeated += placed.repeated;
            all.slowest = all.slowest.max(placed.slowest);
        }
        Ok(all)
    }
}

/// Places orders one after another. A failed call is retried with the same request id until it
/// succeeds, so no outcome stays unknown.
async fn place_orders(
    mut orders: OrderServiceClient<Channel>,
    user_ids: Vec<String>,
    stopped: watch::Receiver<bool>,
    accepted: Arc<AtomicUsize>,
) -> Placed {
    let mut placed = Placed::default();
    for user_id in user_ids.iter().cycle() {
        if *stopped.borrow() {
            break;
        }
        let request = CreateOrderRequest {
            user_id: user_id.clone(),
            amount: Some(money("EUR", 1, 0)),
            request_id: Uuid::new_v4().to_string(),
            ..CreateOrderRequest::default()
        };
        let started = Instant::now();
        loop {
            match orders.create_order(request.clone()).await {
                Ok(response) => {
                    let order = response.into_inner().order.unwrap_or_default();
                    placed.order_ids.push(order.order_id);
                    accepted.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(_) => {
                    placed.repeated += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        placed.slowest = placed.slowest.max(started.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    placed
}
