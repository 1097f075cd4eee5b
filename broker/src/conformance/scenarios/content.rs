//! What arrives is what was published.

use crate::conformance::stage::{
    Played, Stage, consume, message, numbered, publish, receive, sorted, texts, topic,
};
use crate::{Bytes, Limits, Message, Settled};

/// One message.
pub async fn one_message_arrives_as_it_was_published(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let sent = message(&topic, Some("key"), "hello");
    publish(&*stage.publisher().await, std::slice::from_ref(&sent)).await;
    assert_eq!(consume(&mut *group, 1).await, [sent]);
    Ok(())
}

/// One batch of a thousand.
pub async fn a_thousand_messages_arrive(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let sent = numbered(&topic, 1_000);
    publish(&*stage.publisher().await, &sent).await;
    assert_eq!(
        sorted(texts(&consume(&mut *group, 1_000).await)),
        sorted(texts(&sent))
    );
    Ok(())
}

/// As large as the adapter and the library allow, and as small as can be.
pub async fn largest_payload_arrives(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let publisher = stage.publisher().await;
    let limit = Limits::default().payload_bytes;
    let largest = publisher
        .capabilities()
        .max_payload
        .map_or(limit, |max| max.min(limit));
    for size in [0, 1, 4_096, 131_072 - 8, largest] {
        let bytes: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
        let mut sent = message(&topic, None, "");
        sent.payload = bytes.into();
        sent.content_type = "application/octet-stream".to_owned();
        publish(&*publisher, std::slice::from_ref(&sent)).await;
        let came = consume(&mut *group, 1).await;
        assert_eq!(came[0].payload.len(), size);
        assert!(came[0] == sent, "a payload of {size} bytes arrived changed");
    }
    Ok(())
}

/// None, many, empty, long, beyond ASCII, and with every character that header encodings stumble over.
pub async fn headers_of_every_shape_arrive_unchanged(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let base = || Message::builder(&topic, "conformance.said").source("/conformance");
    let mut many = base();
    for number in 0..Limits::default().headers {
        many = many.header(format!("h{number}"), number.to_string());
    }
    let sent = [
        base(),
        base().header("empty", ""),
        base().header("unicode", "grüße 你好 🦀"),
        base().header("signs", "a=b; c=\"d\" %20 %zz \\ ,"),
        base().header("dotted.name_with-signs", "x").header("0", "y"),
        base().header("long", "v".repeat(8 * 1024)),
        base()
            .header("x-own", "kept")
            .header("id", "kept")
            .header("topic", "kept")
            .header("ce_id", "kept"),
        many,
    ]
    .map(|builder| builder.build().unwrap());
    let publisher = stage.publisher().await;
    for sent in sent {
        publish(&*publisher, std::slice::from_ref(&sent)).await;
        let came = consume(&mut *group, 1).await;
        assert_eq!(came[0].headers, sent.headers);
        assert_eq!(came[0], sent);
    }
    Ok(())
}

/// Every attribute of the envelope, trace context included, set and unset.
pub async fn every_attribute_arrives_unchanged(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let time = |text: &str| crate::envelope::parse_timestamp(text).unwrap();
    let full = Message::builder(&topic, "order.größer")
        .source("/shop?name=blåbær")
        .key("Kunde 42 / 你好")
        .payload(&b"\x00\xff bytes"[..], "application/x-own; charset=\"utf-8\"")
        .schema("https://schema.invalid/order/1.json")
        .time(time("2001-02-03T04:05:06.000007Z"))
        .available_at(time("2031-02-03T04:05:06.9Z"))
        .expires_at(time("2041-02-03T04:05:06Z"))
        .trace(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            Some("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7".to_owned()),
        )
        .correlation_id("conversation 1")
        .causation_id("cause 1")
        .header("own", "header")
        .build()
        .unwrap();
    let bare = Message::builder(&topic, "t")
        .source("s")
        .payload("", "text/plain")
        .build()
        .unwrap();
    let publisher = stage.publisher().await;
    for sent in [full, bare] {
        publish(&*publisher, std::slice::from_ref(&sent)).await;
        assert_eq!(consume(&mut *group, 1).await, [sent]);
    }
    Ok(())
}

/// Foreign bytes reach the consumer as what they are, and do not stop what follows.
pub async fn bytes_that_are_no_message_become_a_malformed_delivery(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    if !stage
        .fixture()
        .inject(&topic, Bytes::from_static(b"not ours"))
        .await
    {
        return Err(crate::conformance::NotApplicable::new(
            "a fixture that can inject bytes",
        ));
    }
    let foreign = receive(&mut *group, 1).await.remove(0);
    let malformed = foreign.content().unwrap_err();
    assert_eq!(malformed.body, "not ours");
    assert!(!malformed.reason.is_empty());
    assert_eq!(foreign.dead("no message").await.unwrap(), Settled::Done);
    let sent = message(&topic, None, "ours");
    publish(&*stage.publisher().await, std::slice::from_ref(&sent)).await;
    assert_eq!(consume(&mut *group, 1).await, [sent]);
    Ok(())
}
