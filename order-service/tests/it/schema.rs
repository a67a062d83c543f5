//! Compares `src/schema.rs` with the database; nothing else detects a mistake in it.

use anyhow::Result;

use crate::harness::TestService;

#[tokio::test(flavor = "multi_thread")]
async fn the_declared_schema_matches_the_migrated_database() -> Result<()> {
    let service = TestService::start("schema").await?;
    let declared = include_str!("../../src/schema.rs");
    service.sql.validate_schema(declared).await?;
    service.stop().await
}
