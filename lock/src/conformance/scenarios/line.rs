//! Places: who comes first is served first.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::conformance::Need;
use crate::conformance::stage::{LONG, Played, Stage, ask, key, line_up};
use crate::{Acquire, RequestId, Shape};

/// How long a dead waiter may cost the others.
const PLACE: Duration = Duration::from_millis(300);

/// In order of arrival, whoever asks first after the release.
pub async fn waiters_are_served_in_the_order_of_their_arrival(stage: &Stage) -> Played {
    stage.need(Need::Fair)?;
    let key = key("line");
    let mut hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let waiters: Vec<_> = (0..6).map(|_| line_up(&key, Shape::Exclusive, LONG)).collect();
    for waiter in &waiters {
        stage.refused(waiter).await;
    }
    for turn in 0..waiters.len() {
        stage.release(&hold).await;
        for later in waiters[turn + 1..].iter().rev() {
            stage.refused(later).await;
        }
        hold = stage.granted(&waiters[turn]).await;
    }
    Ok(())
}

/// Asking again does not send a waiter back to the end, and lengthens its place.
pub async fn asking_again_keeps_the_place(stage: &Stage) -> Played {
    stage.need(Need::Fair)?;
    let key = key("keep");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let first = line_up(&key, Shape::Exclusive, PLACE);
    let second = line_up(&key, Shape::Exclusive, LONG);
    stage.refused(&first).await;
    stage.refused(&second).await;
    let since = Instant::now();
    while since.elapsed() < PLACE * 2 {
        stage.refused(&first).await;
        sleep(PLACE / 10).await;
    }
    stage.refused(&first).await;
    stage.release(&hold).await;
    stage.refused(&second).await;
    stage.granted(&first).await;
    Ok(())
}

/// A waiter that does not ask any more costs the others its place's length, not a ttl.
pub async fn a_dead_waiter_is_passed_over(stage: &Stage) -> Played {
    stage.need(Need::Fair)?;
    let key = key("dead");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    for _ in 0..3 {
        stage.refused(&line_up(&key, Shape::Exclusive, PLACE)).await;
    }
    let alive = line_up(&key, Shape::Exclusive, LONG);
    stage.refused(&alive).await;
    stage.release(&hold).await;
    let told = stage.acquire(&alive).await;
    if told.is_none() {
        let retry_after = stage.refused(&alive).await;
        assert!(
            retry_after <= PLACE,
            "{retry_after:?} is longer than the place in front"
        );
    }
    let (_, took) = stage.eventually(&alive).await;
    assert!(took < Duration::from_secs(1), "three dead waiters cost {took:?}");
    Ok(())
}

/// Who leaves is not waited for.
pub async fn leaving_gives_up_the_place(stage: &Stage) -> Played {
    stage.need(Need::Fair)?;
    let key = key("leave");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let (first, second) = (
        line_up(&key, Shape::Exclusive, LONG),
        line_up(&key, Shape::Exclusive, LONG),
    );
    stage.refused(&first).await;
    stage.refused(&second).await;
    stage.release(&hold).await;
    stage.refused(&second).await;
    let left = stage.backend().leave(&key, first.owner, first.shape);
    left.await.unwrap();
    stage.granted(&second).await;
    Ok(())
}

/// Without a place nobody goes before those who have one.
pub async fn nobody_overtakes_a_place(stage: &Stage) -> Played {
    stage.need(Need::Fair)?;
    let key = key("overtake");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let waiter = line_up(&key, Shape::Exclusive, LONG);
    stage.refused(&waiter).await;
    stage.release(&hold).await;
    let hasty = ask(&key, Shape::Exclusive, LONG);
    stage.refused(&hasty).await;
    let hold = stage.granted(&waiter).await;
    stage.release(&hold).await;
    stage.granted(&hasty).await;
    Ok(())
}

/// A process that has the next waiter itself asks for it behind those who wait elsewhere.
pub async fn a_hand_over_overtakes_nobody(stage: &Stage) -> Played {
    stage.need(Need::Fair)?;
    let key = key("over");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let elsewhere = line_up(&key, Shape::Exclusive, LONG);
    stage.refused(&elsewhere).await;
    let own = line_up(&key, Shape::Exclusive, LONG);
    let (_, answer) = stage.backend().hand_over(&hold, RequestId::new(), &own).await;
    assert!(matches!(answer.unwrap(), Acquire::Held { .. }));
    let hold = stage.granted(&elsewhere).await;
    stage.release(&hold).await;
    stage.granted(&own).await;
    Ok(())
}

/// A release wakes the one whose turn it is.
pub async fn the_first_in_the_line_is_woken(stage: &Stage) -> Played {
    stage.need(Need::Fair)?;
    stage.need(Need::Wakes)?;
    let key = key("turn");
    let mut hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let mut waiters = Vec::new();
    for _ in 0..3 {
        let waiter = line_up(&key, Shape::Exclusive, LONG);
        stage.refused(&waiter).await;
        let wake = stage.backend().listen(&key, waiter.owner, waiter.shape).await;
        waiters.push((waiter, wake.unwrap().expect("it declared that it wakes")));
    }
    for (waiter, wake) in &mut waiters {
        stage.release(&hold).await;
        timeout(LONG / 9, wake.woken()).await.expect("a wake");
        hold = stage.granted(waiter).await;
    }
    Ok(())
}
