//! A higher token for a holder, after the service lost its counter.

use crate::conformance::stage::{LONG, Played, Stage, ask, key};
use crate::{FencingToken, Hold, Remint, Renew, Shape};

/// Far above what the service has counted.
const ABOVE: i64 = 1_000_000_000_000;

async fn remint(stage: &Stage, hold: &Hold, above: i64) -> Option<FencingToken> {
    let above = FencingToken::new(above).unwrap();
    match stage.backend().remint(hold, above).await.unwrap() {
        Remint::Minted(token) => {
            assert!(token > above, "{token} is not above {above}");
            Some(token)
        }
        Remint::Lost => None,
    }
}

/// The token jumps above what the database has seen, and never falls back.
pub async fn a_reminted_token_is_higher_and_later_ones_are_higher_still(stage: &Stage) -> Played {
    let key = key("minted");
    let request = ask(&key, Shape::Exclusive, LONG);
    let hold = stage.granted(&request).await;
    let token = remint(stage, &hold, ABOVE).await.expect("still held");
    let again = stage.granted(&request).await;
    assert_eq!(again.token, token, "asking again gives the token in force");
    let low = remint(stage, &hold, 1).await.expect("still held");
    assert!(
        low > token,
        "{low} after {token}: a request from below lowers nothing"
    );
    stage.release(&again).await;
    let next = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    assert!(next.token > low, "{} after {low}", next.token);
    Ok(())
}

/// The hold itself stays as it was.
pub async fn a_reminted_hold_is_renewed_and_released_as_before(stage: &Stage) -> Played {
    let key = key("stays");
    let mut hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    hold.token = remint(stage, &hold, ABOVE).await.expect("still held");
    stage.refused(&ask(&key, Shape::Exclusive, LONG)).await;
    let renewed = stage
        .backend()
        .renew(&[(hold.clone(), LONG)])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(renewed, Renew::Renewed);
    stage.release(&hold).await;
    stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    Ok(())
}

/// Who does not hold the key any more gets no token for it, whoever holds it now.
pub async fn a_lost_hold_gets_no_token(stage: &Stage) -> Played {
    let key = key("lost");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    stage.release(&hold).await;
    assert_eq!(remint(stage, &hold, ABOVE).await, None);
    let request = ask(&key, Shape::Exclusive, LONG);
    let next = stage.granted(&request).await;
    assert_eq!(remint(stage, &hold, ABOVE).await, None);
    assert_eq!(stage.granted(&request).await.token, next.token);
    Ok(())
}
