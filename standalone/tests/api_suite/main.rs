//! The API suite: what Mooring relies on in a Kubernetes API, as cases that take a `kube::Client` and a prefix. They run
//! against the server in this process, against the same over its socket, and, when `MOORING_API_SUITE_KUBECONFIG` names a
//! kubeconfig, against that API server (which needs its controller-manager, for the collector of dependents).
//! Cases do not know which server they face. Where a case fails on the real one, the case and this crate are wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod custom;
mod deletion;
mod objects;
mod support;
mod watches;

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use standalone::{Server, kinds};
use support::{Suite, crds};

fn server() -> Server {
    Server::new(kinds::builtin(), crds()).unwrap()
}

/// Each case becomes a test of either server, and a step of the real server's test.
macro_rules! cases {
    ($($module:ident::{$($case:ident),* $(,)?})*) => {
        mod in_process {
            $($(
                #[tokio::test]
                async fn $case() {
                    let server = super::server();
                    let suite = super::Suite::new(server.client("suite"), stringify!($case)).await;
                    super::$module::$case(&suite).await;
                    suite.clean().await;
                }
            )*)*
        }

        mod over_its_socket {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::over_socket(stringify!($case), async |suite| super::$module::$case(suite).await).await;
                }
            )*)*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn real_server_passes_the_suite() {
            let Some(client) = support::real_client().await else {
                println!("skipped: MOORING_API_SUITE_KUBECONFIG is not set");
                return;
            };
            // Each on its own, so that one run names all that fail.
            let mut failed = Vec::new();
            $($(
                let run = async {
                    let suite = Suite::new(client.clone(), stringify!($case)).await;
                    $module::$case(&suite).await;
                    suite.clean().await;
                };
                let passed = AssertUnwindSafe(run).catch_unwind().await.is_ok();
                println!("case {}: {}", stringify!($case), if passed { "ok" } else { "FAILED" });
                if !passed {
                    failed.push(stringify!($case));
                }
            )*)*
            assert!(failed.is_empty(), "failed on the real server: {failed:?}");
        }
    };
}

cases! {
    objects::{
        create_sets_what_only_the_server_knows,
        bad_names_and_labels_are_refused,
        a_generated_name_is_unique,
        a_stale_update_conflicts,
        a_change_of_nothing_makes_no_version,
        merge_patch_merges_and_removes,
        identity_cannot_change,
        a_missing_namespace_takes_nothing,
        pod_status_is_written_apart,
        a_pod_moves_to_a_node_only_by_binding,
        label_and_field_selectors_choose,
        unknown_fields_are_refused_only_when_strict,
        wrong_types_are_refused,
        metadata_alone_can_be_asked_for,
        a_dry_run_changes_nothing,
        discovery_names_the_kinds,
    }
    custom::{
        defaults_are_filled_and_unknown_fields_dropped,
        schema_errors_name_field_value_and_rule,
        rules_are_judged_on_create_and_on_change,
        the_generation_counts_changes_of_spec_only,
        status_takes_nothing_but_status,
        an_update_needs_its_version,
        a_selectable_field_selects,
        strict_requests_name_unknown_fields,
    }
    deletion::{
        a_finalizer_holds_the_object,
        preconditions_guard_a_delete,
        a_collection_goes_by_its_selector,
        dependents_go_with_their_last_owner,
        orphans_stay,
        a_namespace_takes_its_contents_along,
        a_running_pod_waits_for_its_kubelet,
    }
    watches::{
        a_watch_from_a_list_sees_every_change_in_order,
        a_watch_from_zero_begins_with_what_exists,
        selectors_turn_changes_into_arrivals_and_departures,
        a_watch_by_name_sees_only_its_object,
        a_watch_of_all_namespaces_sees_both,
        a_watch_ends_at_its_timeout,
        the_library_watcher_works,
    }
}

async fn over_socket(case: &str, run: impl AsyncFnOnce(&Suite)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let server = server();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = {
        let path = path.clone();
        tokio::spawn(async move {
            server
                .serve_unix(&path, async {
                    let _ = stopped.await;
                })
                .await
        })
    };
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    let suite = Suite::new(standalone::client::unix(&path, "suite"), case).await;
    run(&suite).await;
    suite.clean().await;
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(!path.exists(), "the socket file outlived its server");
}
