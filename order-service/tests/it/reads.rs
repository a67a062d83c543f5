//! GetOrder and ListOrders.

use anyhow::{Context as _, Result};
use proto::order::v1::{GetOrderRequest, ListOrdersRequest, ListOrdersResponse};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{TestService, assert_rejected, insert_orders, user};

async fn list(
    service: &TestService,
    user_id: &str,
    page_token: &str,
) -> Result<ListOrdersResponse, Status> {
    list_page(service, user_id, 3, page_token).await
}

async fn list_page(
    service: &TestService,
    user_id: &str,
    page_size: i32,
    page_token: &str,
) -> Result<ListOrdersResponse, Status> {
    let request = ListOrdersRequest {
        user_id: user_id.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
    };
    Ok(service.orders().list_orders(request).await?.into_inner())
}

/// Reads all pages; returns their sizes and the ids on them.
async fn read_all(service: &TestService, user_id: &str) -> Result<(Vec<usize>, Vec<String>)> {
    let (mut sizes, mut ids, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = list(service, user_id, &page_token).await?;
        sizes.push(page.orders.len());
        ids.extend(page.orders.into_iter().map(|order| order.order_id));
        if page.next_page_token.is_empty() {
            return Ok((sizes, ids));
        }
        page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_order_is_not_found() -> Result<()> {
    let service = TestService::start("unknown").await?;
    let order_id = Uuid::now_v7().to_string();
    let id = GetOrderRequest {
        order_id: order_id.clone(),
    };
    let result = service.orders().get_order(id).await;
    let details = assert_rejected(result, Code::NotFound, "ORDER_NOT_FOUND");
    let resource = details.resource_info().context("no ResourceInfo")?;
    assert_eq!(resource.resource_type, "order.v1.Order");
    assert_eq!(resource.resource_name, order_id);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_not_a_uuid_is_invalid() -> Result<()> {
    let service = TestService::start("bad_id").await?;
    let id = GetOrderRequest {
        order_id: "1".into(),
    };
    let get = service.orders().get_order(id).await.map(drop);
    let list = list(&service, "1", "").await.map(drop);
    for (result, field) in [(get, "order_id"), (list, "user_id")] {
        let details = assert_rejected(result, Code::InvalidArgument, "VALIDATION_FAILED");
        let violations = details.bad_request().context("no BadRequest")?;
        assert_eq!(violations.field_violations[0].field, field);
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_contain_every_order_once_for_one_user_or_all() -> Result<()> {
    let service = TestService::start("pages").await?;
    let (ada, bob) = (service.known_user().await?, service.known_user().await?);
    let (mut all, mut of_ada) = (Vec::new(), Vec::new());
    for user in [&ada, &bob, &ada, &ada, &bob, &ada, &ada, &ada, &bob] {
        let order_id = service.order(user).await?.order_id;
        if user == &ada {
            of_ada.push(order_id.clone());
        }
        all.push(order_id);
    }
    assert_eq!(read_all(&service, "").await?, (vec![3, 3, 3], all));
    let of_user = read_all(&service, &ada.user_id.to_string()).await?;
    assert_eq!(of_user, (vec![3, 3], of_ada));
    let of_nobody = read_all(&service, &Uuid::now_v7().to_string()).await?;
    assert_eq!(of_nobody, (vec![0], vec![]));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_of_another_list_is_rejected() -> Result<()> {
    let service = TestService::start("tokens").await?;
    let user = service.known_user().await?;
    for _ in 0..4 {
        service.order(&user).await?;
    }
    let (ada, other_user) = (user.user_id.to_string(), Uuid::now_v7().to_string());
    let of_all = list(&service, "", "").await?.next_page_token;
    let of_ada = list(&service, &ada, "").await?.next_page_token;
    for (user_id, page_token) in [
        (ada.as_str(), &of_all),
        ("", &of_ada),
        (&other_user, &of_ada),
        ("", &"1".to_owned()),
    ] {
        let page = list(&service, user_id, page_token).await;
        assert_rejected(page, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    }
    // Another spelling of the user id is the same list.
    let page = list(&service, &ada.to_uppercase(), &of_ada).await?;
    assert_eq!(page.orders.len(), 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_negative_page_size_is_reported_with_the_other_invalid_fields() -> Result<()> {
    let service = TestService::start("negative").await?;
    for (user_id, page_size, invalid) in [
        ("", -1, vec!["page_size"]),
        ("", i32::MIN, vec!["page_size"]),
        ("1", -5, vec!["user_id", "page_size"]),
    ] {
        let page = list_page(&service, user_id, page_size, "").await;
        let details = assert_rejected(page, Code::InvalidArgument, "VALIDATION_FAILED");
        let violations = details.bad_request().context("no BadRequest")?;
        let violations = violations.field_violations.iter();
        let fields: Vec<&str> = violations.map(|v| v.field.as_str()).collect();
        assert_eq!(fields, invalid);
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_50_orders_by_default_and_1000_at_most() -> Result<()> {
    let service = TestService::start("sizes").await?;
    let user = user();
    insert_orders(&service.sql, &user, 1001).await?;
    let ada = user.user_id.to_string();
    for (page_size, expected) in [
        (0, 50),
        (1, 1),
        (1000, 1000),
        (1001, 1000),
        (i32::MAX, 1000),
    ] {
        let page = list_page(&service, &ada, page_size, "").await?;
        assert_eq!(page.orders.len(), expected, "page_size {page_size}");
        assert!(!page.next_page_token.is_empty(), "page_size {page_size}");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_size_may_change_between_pages() -> Result<()> {
    let service = TestService::start("resized").await?;
    let user = user();
    insert_orders(&service.sql, &user, 60).await?;
    let ada = user.user_id.to_string();
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    for (page_size, expected) in [(2, 2), (5, 5), (0, 50), (1, 1), (100, 2)] {
        let page = list_page(&service, &ada, page_size, &page_token).await?;
        assert_eq!(page.orders.len(), expected, "page_size {page_size}");
        ids.extend(page.orders.into_iter().map(|order| order.order_id));
        page_token = page.next_page_token;
    }
    assert_eq!(page_token, "");
    let all = list_page(&service, &ada, 60, "").await?.orders;
    let all: Vec<String> = all.into_iter().map(|order| order.order_id).collect();
    assert_eq!(ids, all);
    service.stop().await
}
