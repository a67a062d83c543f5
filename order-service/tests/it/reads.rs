//! GetOrder and ListOrders.

use anyhow::{Context as _, Result};
use proto::order::v1::{GetOrderRequest, ListOrdersRequest, ListOrdersResponse};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{TestService, assert_rejected};

async fn list(
    service: &TestService,
    user_id: &str,
    page_token: &str,
) -> Result<ListOrdersResponse, Status> {
    let request = ListOrdersRequest {
        user_id: user_id.to_owned(),
        page_size: 3,
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
