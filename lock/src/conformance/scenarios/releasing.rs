//! How a hold ends, and who learns it.

use std::time::Duration;

use futures::FutureExt;
use tokio::time::{sleep, timeout};

use crate::conformance::stage::{LONG, Played, SHORT, Stage, ask, key};
use crate::conformance::{Need, stage::line_up};
use crate::{Acquire, Hold, Owner, Release, RequestId, Shape};

/// A release by someone who does not hold the key changes nothing.
pub async fn another_owner_releases_nothing(stage: &Stage) -> Played {
    let key = key("foreign");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let owner = Owner::new();
    let other = Hold {
        owner,
        ..hold.clone()
    };
    let answer = stage.backend().release(&other, RequestId::new()).await.unwrap();
    assert_eq!(answer, Release::NotHeld);
    stage.refused(&ask(&key, Shape::Exclusive, LONG)).await;
    stage.release(&hold).await;
    Ok(())
}

/// Who lost the answer to a release asks again and gets it.
pub async fn a_repeated_release_is_answered_as_the_first(stage: &Stage) -> Played {
    let hold = stage.granted(&ask(&key("twice"), Shape::Exclusive, LONG)).await;
    let request = RequestId::new();
    for _ in 0..3 {
        let answer = stage.backend().release(&hold, request).await.unwrap();
        assert_eq!(answer, Release::Released);
    }
    let another = stage.backend().release(&hold, RequestId::new()).await.unwrap();
    assert_eq!(another, Release::NotHeld, "another request ended nothing");
    Ok(())
}

/// The repetition comes after the key was granted to the next one.
pub async fn a_repeated_release_does_not_touch_the_next_holder(stage: &Stage) -> Played {
    let key = key("repeated");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let request = RequestId::new();
    stage.backend().release(&hold, request).await.unwrap();
    let next = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let answer = stage.backend().release(&hold, request).await.unwrap();
    assert_eq!(answer, Release::Released);
    stage.refused(&ask(&key, Shape::Exclusive, LONG)).await;
    stage.release(&next).await;
    Ok(())
}

/// A hold that expired cannot be released any more.
pub async fn an_expired_hold_is_not_there_to_release(stage: &Stage) -> Played {
    let request = ask(&key("gone"), Shape::Exclusive, Duration::from_millis(1));
    let hold = stage.granted(&request).await;
    sleep(Duration::from_millis(50)).await;
    let answer = stage.backend().release(&hold, RequestId::new()).await.unwrap();
    assert_eq!(answer, Release::NotHeld);
    Ok(())
}

/// Whoever stops waiting may have been granted the key without learning it.
pub async fn leaving_ends_a_grant_that_was_never_learned(stage: &Stage) -> Played {
    let request = ask(&key("unlearned"), Shape::Exclusive, LONG);
    stage.backend().acquire(&request).await.unwrap();
    for _ in 0..2 {
        let left = stage.backend().leave(&request.key, request.owner, request.shape);
        left.await.unwrap();
    }
    stage.granted(&ask(&request.key, Shape::Exclusive, LONG)).await;
    Ok(())
}

/// Who leaves takes nothing of anybody else with it.
pub async fn leaving_touches_nobody_else(stage: &Stage) -> Played {
    let key = key("bystander");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let left = stage.backend().leave(&key, Owner::new(), Shape::Exclusive);
    left.await.unwrap();
    stage.refused(&ask(&key, Shape::Exclusive, LONG)).await;
    stage.release(&hold).await;
    Ok(())
}

/// Acquisitions dropped half-way, each followed by leaving: the key is free long before its ttl.
pub async fn cancelled_acquisitions_leave_nothing(stage: &Stage) -> Played {
    let key = key("cancelled");
    for polls in 0..20 {
        let request = ask(&key, Shape::Exclusive, LONG);
        {
            let mut asked = stage.backend().acquire(&request);
            for _ in 0..polls {
                if (&mut asked).now_or_never().is_some() {
                    break;
                }
                sleep(Duration::from_micros(50)).await;
            }
        }
        // What was dropped may still be on its way; leaving is repeated until it has arrived.
        let next = ask(&key, Shape::Exclusive, LONG);
        let freed = async {
            loop {
                let left = stage.backend().leave(&key, request.owner, request.shape);
                left.await.unwrap();
                if let Some(hold) = stage.acquire(&next).await {
                    break hold;
                }
            }
        };
        let hold = timeout(LONG / 9, freed).await.expect("nothing is left behind");
        stage.release(&hold).await;
    }
    Ok(())
}

/// A holder gives the key to the next waiter of its own process.
pub async fn a_hand_over_releases_and_grants(stage: &Stage) -> Played {
    let hold = stage.granted(&ask(&key("over"), Shape::Exclusive, LONG)).await;
    let next = ask(&hold.key, Shape::Exclusive, LONG);
    let request = RequestId::new();
    let (released, acquired) = stage.backend().hand_over(&hold, request, &next).await;
    assert_eq!(released.unwrap(), Release::Released);
    let Acquire::Granted { token } = acquired.unwrap() else {
        panic!("the key was free");
    };
    assert!(token > hold.token);
    let (released, acquired) = stage.backend().hand_over(&hold, request, &next).await;
    assert_eq!(released.unwrap(), Release::Released, "repeated");
    assert_eq!(acquired.unwrap(), Acquire::Granted { token }, "repeated");
    Ok(())
}

/// A waiter is woken by the release, by way of another connection, and every time.
pub async fn a_release_wakes_who_listens(stage: &Stage) -> Played {
    stage.need(Need::Wakes)?;
    let key = key("wake");
    let other = stage.another().await;
    for _ in 0..3 {
        let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
        let waiter = line_up(&key, Shape::Exclusive, LONG);
        let wake = other.listen(&key, waiter.owner, waiter.shape).await.unwrap();
        let mut wake = wake.expect("it declared that it wakes");
        other.acquire(&waiter).await.unwrap();
        // A hint of the past may be delivered late; one that comes after the release must be there.
        while timeout(SHORT / 4, wake.woken()).await.is_ok() {}
        stage.release(&hold).await;
        timeout(LONG / 9, wake.woken()).await.expect("a wake");
        let (hold, _) = stage.eventually(&waiter).await;
        stage.release(&hold).await;
    }
    Ok(())
}
