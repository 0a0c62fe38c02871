"""The mutants of accounting: each breaks one promise in one place, and one named test must notice."""

from dataclasses import dataclass

CONTRACT = "tests/contracts/test_ledger_contract.py"
COMBINE = "tests/unit/test_combine.py"
RACES = "tests/contracts/test_ledger_races.py"
RULES = "tests/unit/test_ledger_rules.py"
PRICING = "tests/unit/test_ledger_pricing.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`text`, which `file` holds exactly once, becomes `becomes`: then `breaks` is so, and `test` must fail."""

    breaks: str
    file: str
    text: str
    becomes: str
    suite: str = CONTRACT
    test: str


MUTANTS = (
    Mutant(
        breaks="a stream goes on with a dearer model without holding what that needs",
        file="accounting/repriced.py",
        text="    if granted.reserved > held:\n",
        becomes="    if False:\n",
        test="test_a_dearer_model_takes_what_its_first_slice_needs",
    ),
    Mutant(
        breaks="a stream is charged at the price of a model that did not answer",
        file="accounting/repriced.py",
        text="= request.model_id, version.version\n",
        becomes="= request.model_id, reservation.price_version\n",
        test="test_the_price_of_the_new_model_is_the_one_in_force_at_the_change",
    ),
    Mutant(
        breaks="asked again for the same model, a stream holds more",
        file="accounting/repriced.py",
        text="    if not request.holds(reservation):\n",
        becomes="    if True:\n",
        test="test_a_repeated_change_of_model_renews_nothing",
    ),
    Mutant(
        breaks="a grant is made twice when its request is repeated",
        file="accounting/once.py",
        text="        if once is None:\n",
        becomes="        if True:\n",
        test="test_a_change_under_one_key_happens_once_and_answers_the_same_text",
    ),
    Mutant(
        breaks="a key answers another request than the one it was used for",
        file="accounting/queries.py",
        text="    if row.hash != fingerprint:\n",
        becomes="    if False:\n",
        test="test_a_change_under_one_key_happens_once_and_answers_the_same_text",
    ),
    Mutant(
        breaks="a stream id answers another request than the one it was used for",
        file="accounting/metered.py",
        text="    if not opening.opened(reservation):\n",
        becomes="    if False:\n",
        test="test_the_same_id_for_another_request_is_refused",
    ),
    Mutant(
        breaks="a balance is overdrawn by a slice",
        file="accounting/metered.py",
        text="    whole = price.affordable(budget=budget + paid,",
        becomes="    whole = price.affordable(budget=2 * budget + paid,",
        test="test_a_balance_that_covers_less_than_asked_is_granted_and_final",
    ),
    Mutant(
        breaks="what running streams hold can be taken away from them",
        file="accounting/changes.py",
        text="    if account.available + difference < 0:\n",
        becomes="    if account.posted + difference < 0:\n",
        test="test_setting_the_balance_counts_what_streams_hold_and_never_takes_it_from_them",
    ),
    Mutant(
        breaks="a replica goes by what a stream was before another replica changed it",
        file="accounting/kept.py",
        text=" if version is not None and version == self.version else Kept()\n",
        becomes=" if version is not None else Kept()\n",
        suite=RACES,
        test="test_what_one_replica_does_with_a_stream_the_other_goes_by_though_no_credit_moved",
    ),
    Mutant(
        breaks="what an undone batch had changed is taken for what is kept",
        file="accounting/combine.py",
        text="        kept, self._kept = self._kept.at(self._database.version(connection)), Kept()\n",
        becomes="        kept = self._kept.at(self._database.version(connection))\n",
        suite=COMBINE,
        test="test_what_a_batch_that_was_undone_had_changed_is_nowhere_kept",
    ),
    Mutant(
        breaks="a posting may overdraw an account",
        file="accounting/books.py",
        text="        assert account.available >= 0 and account.reserved >= 0, ",
        becomes="        assert True, ",
        suite=RULES,
        test="test_nothing_takes_what_is_not_there",
    ),
    Mutant(
        breaks="a stream is charged twice when its settlement is repeated",
        file="accounting/ended.py",
        text="    if reservation.usage_source is not None:\n",
        becomes="    if False:\n",
        test="test_settling_again_gives_the_first_answer_and_charges_nothing",
    ),
    Mutant(
        breaks="what a stream used beyond its reservation is free",
        file="accounting/ended.py",
        text="    extra = min(max(cost - held, 0), budget(books, account, reservation, held=held))\n",
        becomes="    extra = 0\n",
        test="test_usage_beyond_the_reservation_is_reserved_before_it_is_charged",
    ),
    Mutant(
        breaks="what could not be charged is written off without a trace",
        file="accounting/ended.py",
        text="    if cost > charged:\n",
        becomes="    if False:\n",
        test="test_usage_beyond_the_balance_is_written_off_in_plain_sight",
    ),
    Mutant(
        breaks="credits that a stream returns get a later expiry",
        file="accounting/ended.py",
        text="        grant = books.grants[grant_id]\n",
        becomes="        grant = account.grants[-1]\n",
        test="test_the_soonest_expiring_grant_pays_first_and_gets_back_what_is_left",
    ),
    Mutant(
        breaks="credits that return to an expired grant live on",
        file="accounting/ended.py",
        text="        late = late or grant.grant.due(at=books.at)\n",
        becomes="        late = False\n",
        test="test_a_grant_that_expires_under_a_stream_pays_for_it_and_its_rest_expires",
    ),
    Mutant(
        breaks="a hold survives its stream",
        file="accounting/ended.py",
        text="    back = pay(books, account, reservation.id, read_parts(reservation.parts), 0)\n",
        becomes="    back = False\n",
        test="test_voiding_restores_what_was_available",
    ),
    Mutant(
        breaks="a settlement after the expiry returns once more what was returned",
        file="accounting/ended.py",
        text="    active = reservation.state is State.ACTIVE\n",
        becomes="    active = True\n",
        test="test_a_late_settlement_charges_what_is_there_now_and_the_reservation_stays_expired",
    ),
    Mutant(
        breaks="a voided stream can be charged",
        file="accounting/ended.py",
        text="    if reservation.state is State.VOIDED:\n",
        becomes="    if False:\n",
        test="test_voiding_restores_what_was_available",
    ),
    Mutant(
        breaks="a stream is charged at the price of its end",
        file="accounting/ended.py",
        text="books.price_version(reservation.price_version).price.cost(",
        becomes=(
            '__import__("parshall.accounting.queries", fromlist=["queries"])'
            ".price_in_force(books.connection, reservation.model_id, at=books.at).price.cost("
        ),
        test="test_a_stream_is_charged_at_the_price_it_began_with",
    ),
    Mutant(
        breaks="a slice of an ended reservation looks like one that pays",
        file="accounting/metered.py",
        text='    if reservation.state is not State.ACTIVE:\n        raise ReservationEnded("',
        becomes='    if False:\n        raise ReservationEnded("',
        test="test_reserving_again_what_has_ended_is_refused_for_nothing_is_held_any_more",
    ),
    Mutant(
        breaks="an extension does not renew its reservation",
        file="accounting/metered.py",
        text="    reservation.expires_at = granted.expires_at\n",
        becomes="",
        test="test_extending_holds_more_output_and_renews_the_reservation",
    ),
    Mutant(
        breaks="an extension can be skipped, and its repetition then holds more",
        file="accounting/metered.py",
        text="    if step != reservation.step + 1:\n",
        becomes="    if False:\n",
        test="test_a_step_cannot_be_skipped",
    ),
    Mutant(
        breaks="the first stream takes a small balance whole",
        file="accounting/metered.py",
        text="    share = price.affordable(budget=budget // SHARE + paid,",
        becomes="    share = price.affordable(budget=budget + paid,",
        suite=RACES,
        test="test_ten_streams_share_a_small_balance_and_each_ends_at_exactly_its_last_paid_token",
    ),
    Mutant(
        breaks="expired credits can be spent until a sweep comes by",
        file="accounting/books.py",
        text="            if held.remaining and held.grant.due(at=self.at):\n",
        becomes="            if False:\n",
        test="test_a_due_grant_cannot_be_reserved_even_before_it_is_swept",
    ),
    Mutant(
        breaks="the grant that lasts longest pays first",
        file="accounting/books.py",
        text="        for held in account.grants:\n            if missing == 0:\n",
        becomes="        for held in reversed(account.grants):\n            if missing == 0:\n",
        suite=RULES,
        test="test_of_equal_priority_the_soonest_expiring_pays_first",
    ),
    Mutant(
        breaks="a fraction of a microcredit is free",
        file="accounting/pricing.py",
        text="    return Credits(-(-exact // TOKENS_PER_PRICE))\n",
        becomes="    return Credits(exact // TOKENS_PER_PRICE)\n",
        suite=PRICING,
        test="test_a_fraction_of_a_microcredit_is_rounded_up_and_only_once",
    ),
    Mutant(
        breaks="a transfer is not chained to the one before it",
        file="accounting/books.py",
        text="        account.head = link(account.head, entry)\n",
        becomes="        account.head = link(GENESIS, entry)\n",
        suite=RACES,
        test="test_a_stream_that_all_replicas_reserve_and_settle_at_once_is_held_and_charged_once",
    ),
    Mutant(
        breaks="a transfer can be changed afterwards",
        file="accounting/migrations/versions/0002_chains.py",
        text="BEGIN SELECT RAISE(ABORT, 'transfers are append-only'); END",
        becomes="BEGIN SELECT 1; END",
        test="test_transfers_cannot_be_changed_or_deleted",
    ),
)
