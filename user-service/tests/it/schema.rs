//! `src/schema.rs` tells diesel what the tables look like; nothing else notices when it is wrong.

use anyhow::Result;

use crate::harness::TestService;

#[tokio::test(flavor = "multi_thread")]
async fn the_declared_schema_is_that_of_the_migrated_database() -> Result<()> {
    let service = TestService::start("schema").await?;
    let declared = include_str!("../../src/schema.rs");
    service.sql.validate_schema(declared).await?;
    service.stop().await
}
