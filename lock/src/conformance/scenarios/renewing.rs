//! How a hold is kept, and what is said when it is gone.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::conformance::stage::{LONG, Played, SHORT, Stage, ask, key};
use crate::{FencingToken, Hold, Renew, RequestId, Shape};

async fn renew(stage: &Stage, hold: &Hold, ttl: Duration) -> Renew {
    let mut answers = stage.backend().renew(&[(hold.clone(), ttl)]).await;
    assert_eq!(answers.len(), 1);
    answers.remove(0).unwrap()
}

/// Renewing often does not put the end far into the future.
pub async fn a_renewal_sets_the_ttl_and_adds_nothing(stage: &Stage) -> Played {
    let key = key("renewed");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    for _ in 0..10 {
        assert_eq!(renew(stage, &hold, SHORT).await, Renew::Renewed);
    }
    let since = Instant::now();
    sleep(SHORT / 2).await;
    assert_eq!(renew(stage, &hold, SHORT).await, Renew::Renewed);
    stage.eventually(&ask(&key, Shape::Exclusive, LONG)).await;
    let took = since.elapsed();
    assert!(took >= SHORT + SHORT / 4, "the last renewal was cut: {took:?}");
    assert!(took < SHORT * 6, "the renewals were added up: {took:?}");
    Ok(())
}

/// A renewal that comes too late does not take the key.
pub async fn an_expired_hold_is_not_revived(stage: &Stage) -> Played {
    let key = key("late");
    let hold = stage
        .granted(&ask(&key, Shape::Exclusive, Duration::from_millis(1)))
        .await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(renew(stage, &hold, LONG).await, Renew::Expired);
    stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    Ok(())
}

/// A renewal that was on its way while the key was released does not take it again.
pub async fn a_released_hold_is_not_revived(stage: &Stage) -> Played {
    let key = key("released");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    stage.release(&hold).await;
    assert_eq!(renew(stage, &hold, LONG).await, Renew::Expired);
    stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    Ok(())
}

/// Who lost the key to someone else learns it, and leaves the other's ttl alone.
pub async fn a_stolen_hold_is_told_and_left_alone(stage: &Stage) -> Played {
    let key = key("stolen");
    let old = stage
        .granted(&ask(&key, Shape::Exclusive, Duration::from_millis(1)))
        .await;
    let (new, _) = stage.eventually(&ask(&key, Shape::Exclusive, SHORT)).await;
    assert_eq!(renew(stage, &old, LONG).await, Renew::Stolen);
    assert!(new.token > old.token);
    let (_, took) = stage.eventually(&ask(&key, Shape::Exclusive, LONG)).await;
    assert!(
        took < SHORT * 6,
        "the old holder's renewal lengthened the new one's ttl"
    );
    Ok(())
}

/// One call, many holds of every fate: one answer each, in their order.
pub async fn many_holds_are_answered_in_order(stage: &Stage) -> Played {
    let mut holds = Vec::new();
    for n in 0..60 {
        let request = ask(&key(&format!("many:{n}")), Shape::Exclusive, LONG);
        holds.push((stage.granted(&request).await, LONG));
    }
    let mut expected = vec![Renew::Renewed; holds.len()];
    for n in (0..holds.len()).step_by(3) {
        stage.release(&holds[n].0).await;
        expected[n] = Renew::Expired;
        if n % 2 == 0 {
            stage.granted(&ask(&holds[n].0.key, Shape::Exclusive, LONG)).await;
            expected[n] = Renew::Stolen;
        }
    }
    let answers = stage.backend().renew(&holds).await;
    let answers: Vec<Renew> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, expected);
    Ok(())
}

/// No holds, no answers.
pub async fn nothing_to_renew_is_answered_with_nothing(stage: &Stage) -> Played {
    assert!(stage.backend().renew(&[]).await.is_empty());
    Ok(())
}

/// The owner decides, not the token: a renewal that left before the token was minted anew is not a theft.
pub async fn a_hold_is_renewed_by_its_owner_whatever_its_token(stage: &Stage) -> Played {
    let hold = stage.granted(&ask(&key("owner"), Shape::Exclusive, LONG)).await;
    let above = FencingToken::new(hold.token.get() + 1000).unwrap();
    stage.backend().remint(&hold, above).await.unwrap();
    assert_eq!(renew(stage, &hold, LONG).await, Renew::Renewed);
    stage.backend().release(&hold, RequestId::new()).await.unwrap();
    stage.granted(&ask(&hold.key, Shape::Exclusive, LONG)).await;
    Ok(())
}
