"""13,083 questions of bank customers in 77 intents, assigned to ten sites.

Source: BANKING77, CC BY 4.0. The set has no natural sites, so questions are assigned at random; the
published test file is the test split.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.config import find_data
from privet.simulations.partition import deal
from privet.simulations.scenarios import Scenario, tuned_minilm, tuned_minilm_plain

_SOURCE = "PolyAI (task-specific-datasets, banking77)"
_SITES = 10

CLASSES = (
    "Refund_not_showing_up activate_my_card age_limit apple_pay_or_google_pay atm_support "
    "automatic_top_up balance_not_updated_after_bank_transfer "
    "balance_not_updated_after_cheque_or_cash_deposit beneficiary_not_allowed cancel_transfer "
    "card_about_to_expire card_acceptance card_arrival card_delivery_estimate card_linking "
    "card_not_working card_payment_fee_charged card_payment_not_recognised "
    "card_payment_wrong_exchange_rate card_swallowed cash_withdrawal_charge "
    "cash_withdrawal_not_recognised change_pin compromised_card contactless_not_working "
    "country_support declined_card_payment declined_cash_withdrawal declined_transfer "
    "direct_debit_payment_not_recognised disposable_card_limits edit_personal_details "
    "exchange_charge exchange_rate exchange_via_app extra_charge_on_statement failed_transfer "
    "fiat_currency_support get_disposable_virtual_card get_physical_card getting_spare_card "
    "getting_virtual_card lost_or_stolen_card lost_or_stolen_phone order_physical_card "
    "passcode_forgotten pending_card_payment pending_cash_withdrawal pending_top_up "
    "pending_transfer pin_blocked receiving_money request_refund reverted_card_payment? "
    "supported_cards_and_currencies terminate_account top_up_by_bank_transfer_charge "
    "top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed top_up_limits "
    "top_up_reverted topping_up_by_card transaction_charged_twice transfer_fee_charged "
    "transfer_into_account transfer_not_received_by_recipient transfer_timing "
    "unable_to_verify_identity verify_my_identity verify_source_of_funds verify_top_up "
    "virtual_card_not_working visa_or_mastercard why_verify_identity "
    "wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal"
).split()


def probe(data_dir: Path | None) -> Path:
    """Return the folder of the files."""
    return find_data("banking77", data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return all questions: text, intent, site, and whether it is in the published test file."""
    folder = probe(data_dir)
    root = folder.parent
    train = pd.read_csv(find_data("banking77/train.csv", root, source=_SOURCE))
    test = pd.read_csv(find_data("banking77/test.csv", root, source=_SOURCE))
    joined = pd.concat([train.assign(part="train"), test.assign(part="test")], ignore_index=True)
    site = deal(len(joined), _SITES, seed=77)
    return joined.assign(site=[f"Branch {number + 1}" for number in site])


SCENARIO = Scenario(
    name="banking77",
    title="What does a customer want? Ten bank branches, 13,083 questions, 77 intents",
    data="banking77/ in the data folder (CC BY 4.0)",
    plan={
        "name": "banking77",
        "title": "Ten branches sort their customers' questions",
        "task": {
            "kind": "text",
            "label": "category",
            "classes": CLASSES,
            "text": "text",
            "max_tokens": 64,
        },
        "model": {"kind": "minilm", "options": {"tuning": "head", "scale": 4.0}},
        "training": {
            "rounds": 20,
            "steps": 1,
            "sample_rate": 1.0,
            "learning_rate": 16.0,
            "micro_batch": 1024,
        },
        "strategy": {
            "kind": "fedavgm",
            "options": {"server_momentum": 0.8},
            "average_last": 5,
        },
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "unit": "record", "clip": 1.0},
        "metrics": {"source": "public"},
        "split": {"test": 0.2, "validation": 0.1},
        "sites": [{"name": f"Branch {n + 1}", "nominal_size": 900} for n in range(_SITES)],
    },
    models={
        "text-encoder": {
            "model": {"kind": "text-encoder", "options": {"width": 64, "layers": 1}},
            "training": {
                "rounds": 10, "steps": 4, "sample_rate": 0.1, "learning_rate": 0.5,
                "micro_batch": 128,
            },
            "strategy": {"kind": "fedavg", "options": {}, "average_last": 3},
        },
        **tuned_minilm(rounds=20, sample_rate=0.2, eta=0.01, clip=1.0),
    },
    slow=("minilm-lora", "minilm-full"),
    plain={
        "minilm": {"training": {"clip": None, "rounds": 40}, "strategy": {"average_last": 10}},
        "text-encoder": {
            "training": {
                "clip": None, "optimizer": "adam", "rounds": 20, "steps": 10,
                "learning_rate": 0.003,
            },
        },
        **tuned_minilm_plain(
            rounds=8, steps=40, sample_rate=0.02, rates={"lora": 4e-3, "full": 3e-4}
        ),
    },
    load=load,
    probe=probe,
    attested={"H21": "each question is dealt to one branch"},
)  # fmt: skip
