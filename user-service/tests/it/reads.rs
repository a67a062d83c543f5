//! GetUser and ListUsers.

use anyhow::{Context as _, Result};
use proto::user::v1::{
    GetUserOrderSummaryRequest, GetUserRequest, ListUsersRequest, ListUsersResponse,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{TestService, assert_rejected};

/// Creates a request for users that are not deleted.
fn live() -> ListUsersRequest {
    ListUsersRequest::default()
}

/// Creates a request for all users.
fn all() -> ListUsersRequest {
    ListUsersRequest {
        show_deleted: true,
        ..live()
    }
}

async fn list(
    service: &TestService,
    request: &ListUsersRequest,
    page_token: &str,
) -> Result<ListUsersResponse, Status> {
    list_page(service, request, 3, page_token).await
}

async fn list_page(
    service: &TestService,
    request: &ListUsersRequest,
    page_size: i32,
    page_token: &str,
) -> Result<ListUsersResponse, Status> {
    let request = ListUsersRequest {
        page_size,
        page_token: page_token.to_owned(),
        ..request.clone()
    };
    Ok(service.users().list_users(request).await?.into_inner())
}

/// Inserts users directly, in one statement.
async fn insert_users(service: &TestService, count: i32) -> Result<()> {
    let insert = "insert into users (user_id, email, email_key, name, version, create_time, update_time)
                  select gen_random_uuid(), n || '@example.com', n || '@example.com', n, 1, now(), now()
                  from generate_series(1, $1) n";
    service.sql.execute(insert, &[&count]).await?;
    Ok(())
}

/// Reads all pages; returns their sizes and the names on them.
async fn read_all(
    service: &TestService,
    request: &ListUsersRequest,
) -> Result<(Vec<usize>, Vec<String>)> {
    let (mut sizes, mut names, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = list(service, request, &page_token).await?;
        sizes.push(page.users.len());
        names.extend(page.users.into_iter().map(|user| user.name));
        if page.next_page_token.is_empty() {
            return Ok((sizes, names));
        }
        page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_user_is_not_found() -> Result<()> {
    let service = TestService::start("unknown").await?;
    let user_id = Uuid::now_v7().to_string();
    let (id, of) = (
        GetUserRequest {
            user_id: user_id.clone(),
        },
        GetUserOrderSummaryRequest {
            user_id: user_id.clone(),
        },
    );
    let get = service.users().get_user(id).await.map(drop);
    let summary = service.users().get_user_order_summary(of).await.map(drop);
    for result in [get, summary] {
        let details = assert_rejected(result, Code::NotFound, "USER_NOT_FOUND");
        let resource = details.resource_info().context("no ResourceInfo")?;
        assert_eq!(
            (&resource.resource_type, &resource.resource_name),
            (&"user.v1.User".to_owned(), &user_id)
        );
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_not_a_uuid_is_invalid() -> Result<()> {
    let service = TestService::start("bad_id").await?;
    for user_id in ["", "1", "0199d0a0-0000-7000-8000-00000000000g"] {
        let (id, of) = (
            GetUserRequest {
                user_id: user_id.into(),
            },
            GetUserOrderSummaryRequest {
                user_id: user_id.into(),
            },
        );
        let get = service.users().get_user(id).await.map(drop);
        let summary = service.users().get_user_order_summary(of).await.map(drop);
        for result in [get, summary] {
            let details = assert_rejected(result, Code::InvalidArgument, "VALIDATION_FAILED");
            let violations = details.bad_request().context("no BadRequest")?;
            assert_eq!(violations.field_violations[0].field, "user_id");
        }
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_contain_every_user_once_oldest_first() -> Result<()> {
    let service = TestService::start("pages").await?;
    let mut names: Vec<String> = Vec::new();
    assert_eq!(read_all(&service, &live()).await?, (vec![0], names.clone()));
    for (count, sizes) in [(6, vec![3, 3]), (7, vec![3, 3, 1])] {
        while names.len() < count {
            // Descending, to detect sorting by name.
            let name = format!("user{}", 99 - names.len());
            service.user(&name).await?;
            names.push(name);
        }
        assert_eq!(read_all(&service, &live()).await?, (sizes, names.clone()));
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_created_while_pages_are_read_shifts_no_page() -> Result<()> {
    let service = TestService::start("moving").await?;
    for name in ["a", "b", "c", "d"] {
        service.user(name).await?;
    }
    let first = list(&service, &live(), "").await?;
    service.user("e").await?;
    let second = list(&service, &live(), &first.next_page_token).await?;
    let pages = first.users.iter().chain(&second.users);
    let names: Vec<&str> = pages.map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_users_are_listed_only_on_request() -> Result<()> {
    let service = TestService::start("deleted").await?;
    for name in ["a", "b", "c", "d"] {
        let user = service.user(name).await?;
        if name == "b" {
            service.delete(&user).await?;
        }
    }
    assert_eq!(read_all(&service, &live()).await?.1, ["a", "c", "d"]);
    // A deleted user has no name.
    assert_eq!(read_all(&service, &all()).await?.1, ["a", "", "c", "d"]);
    let all = list(&service, &all(), "").await?.users;
    let deleted: Vec<bool> = all.iter().map(|user| user.delete_time.is_some()).collect();
    assert_eq!(deleted, [false, true, false]);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_token_or_one_of_another_list_is_rejected() -> Result<()> {
    let service = TestService::start("tokens").await?;
    for name in ["a", "b", "c", "d"] {
        service.user(name).await?;
    }
    let token = list(&service, &live(), "").await?.next_page_token;
    let mut damaged = token.clone();
    let other = if &token[10..11] == "A" { "B" } else { "A" };
    damaged.replace_range(10..11, other);
    for (page_token, request) in [
        (damaged.as_str(), live()),
        (&token[..token.len() - 1], live()),
        ("1", live()),
        (&token, all()),
    ] {
        let page = list(&service, &request, page_token).await;
        assert_rejected(page, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    }
    assert_eq!(list(&service, &live(), &token).await?.users.len(), 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_negative_page_size_is_rejected() -> Result<()> {
    let service = TestService::start("negative").await?;
    for page_size in [-1, -5, i32::MIN] {
        let page = list_page(&service, &live(), page_size, "").await;
        let details = assert_rejected(page, Code::InvalidArgument, "VALIDATION_FAILED");
        let violations = details.bad_request().context("no BadRequest")?;
        assert_eq!(violations.field_violations[0].field, "page_size");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_50_users_by_default_and_1000_at_most() -> Result<()> {
    let service = TestService::start("sizes").await?;
    insert_users(&service, 1001).await?;
    for (page_size, expected) in [
        (0, 50),
        (1, 1),
        (1000, 1000),
        (1001, 1000),
        (i32::MAX, 1000),
    ] {
        let page = list_page(&service, &live(), page_size, "").await?;
        assert_eq!(page.users.len(), expected, "page_size {page_size}");
        assert!(!page.next_page_token.is_empty(), "page_size {page_size}");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_size_may_change_between_pages() -> Result<()> {
    let service = TestService::start("resized").await?;
    insert_users(&service, 60).await?;
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    for (page_size, expected) in [(2, 2), (5, 5), (0, 50), (1, 1), (100, 2)] {
        let page = list_page(&service, &live(), page_size, &page_token).await?;
        assert_eq!(page.users.len(), expected, "page_size {page_size}");
        ids.extend(page.users.into_iter().map(|user| user.user_id));
        page_token = page.next_page_token;
    }
    assert_eq!(page_token, "");
    let all = list_page(&service, &live(), 60, "").await?.users;
    let all: Vec<String> = all.into_iter().map(|user| user.user_id).collect();
    assert_eq!(ids, all);
    service.stop().await
}
