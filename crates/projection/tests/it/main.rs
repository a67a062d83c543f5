//! The guarantees of a projection, on a real Postgres and a real Kafka.

mod acl;
mod broker;
mod commits;
mod dead_letters;
mod erasure;
mod faulty;
mod following;
mod harness;
mod lag;
mod load;
mod naive;
mod permissions;
mod poison;
mod raw_record;
mod rebalances;
mod rebuilding;
mod replay;
mod replicas;
mod resetting;
mod silence;
mod stale_consumers;
mod stops;
mod topic_identity;
mod truncation;
mod who;
