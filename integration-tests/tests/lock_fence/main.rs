//! The fence on every database: what it refuses, what waits, and what it leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod excluding;
mod isolation;
mod scenarios;
mod site;
mod synchronous;
mod tokens;

/// One test of each scenario on each database.
macro_rules! on_every_database {
    ($($module:ident::$name:ident,)+) => {
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let site = outbox_testing::or_skip!(crate::site::postgres("read committed").await);
                    crate::$module::$name(&site).await;
                }
            )+
        }

        mod mysql {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let site = outbox_testing::or_skip!(crate::site::mysql("repeatable read").await);
                    crate::$module::$name(&site).await;
                }
            )+
        }

        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let site = outbox_testing::or_skip!(crate::site::sqlite().await);
                    crate::$module::$name(&site).await;
                }
            )+
        }
    };
}

on_every_database! {
    scenarios::a_smaller_token_is_refused_and_the_higher_one_named,
    scenarios::an_equal_token_passes,
    scenarios::a_rolled_back_token_is_forgotten,
    scenarios::a_fence_outside_a_transaction_is_refused,
    scenarios::a_refused_transaction_can_still_read_and_must_be_rolled_back,
    scenarios::who_comes_next_waits_for_a_paused_holder,
    scenarios::an_old_holder_that_waited_is_refused,
    scenarios::first_holders_at_once_leave_the_highest_token,
    scenarios::the_longest_key_is_a_resource,
    scenarios::keys_differ_by_case_accent_and_trailing_blank,
    scenarios::migrators_may_run_at_once_and_again,
    scenarios::without_tables_the_error_says_migrate,
    excluding::a_lock_ends_with_its_transaction,
    excluding::a_wait_for_a_transaction_ends_with_it_or_at_its_limit,
    excluding::a_lock_outside_a_transaction_is_refused,
    tokens::minted_tokens_fence_their_elders,
    tokens::tokens_minted_at_once_are_all_different,
    tokens::minting_waits_for_a_protected_transaction_but_not_for_ever,
    tokens::a_fresh_holder_of_a_service_that_lost_its_counter_is_reminted,
}
