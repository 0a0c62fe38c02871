"""The price list: versions of each model's price, what is in force, and what usage would cost."""

from collections.abc import Sequence

from sqlalchemy import Connection

from parshall.accounting import queries
from parshall.accounting.books import Books
from parshall.accounting.combine import Combiner, Operation
from parshall.accounting.model import ModelWithoutPrice, PriceConflict
from parshall.accounting.pricing import DEFAULT_PRICES, Price, PriceVersion
from parshall.kernel.credits import Credits
from parshall.kernel.database import Database
from parshall.kernel.errors import Invalid
from parshall.kernel.metering import Usage


class PriceList:
    """The prices of one deployment; what is in force is decided by the database's clock."""

    def __init__(self, database: Database, combiner: Combiner) -> None:
        """Read from `database`; change through `combiner`."""
        self._database = database
        self._combiner = combiner

    async def start(self) -> None:
        """Write the default prices where no price was ever set."""

        def work(connection: Connection) -> None:
            if queries.any_price(connection):
                return
            for model_id, price in DEFAULT_PRICES.items():
                queries.add_price(connection, PriceVersion.of(model_id, price, effective_from=0, set_by="default"))

        await self._database.write(work)

    async def in_force(self, model_id: str) -> PriceVersion:
        """What a reservation for the model would be priced at now. Raises ModelWithoutPrice."""
        database = self._database
        version = await database.read(lambda c: queries.price_in_force(c, model_id, at=database.instant(c)), brief=True)
        if version is None:
            raise ModelWithoutPrice
        return version

    async def calculate(self, model_id: str, usage: Usage) -> Credits:
        """What this usage costs at the price in force. Raises ModelWithoutPrice."""
        return (await self.in_force(model_id)).price.cost(usage)

    async def all(self) -> Sequence[PriceVersion]:
        """Per model the price in force and those to come."""
        database = self._database
        return await database.read(lambda c: queries.current_prices(c, at=database.instant(c)))

    def putting(
        self, model_id: str, price: Price, *, set_by: str, effective_from: int | None = None
    ) -> Operation[PriceVersion]:
        """Set a model's price from an instant on (now where none is given); reservations keep the price they began at.

        Raises Invalid for an instant in the past: what was in force then is history. Raises PriceConflict.
        """

        def apply(books: Books) -> PriceVersion:
            if effective_from is not None and effective_from < books.at:
                raise Invalid("effectiveFrom lies in the past; leave it out, or name an instant to come.")
            start = books.at if effective_from is None else effective_from
            return queries.add_price(
                books.connection, PriceVersion.of(model_id, price, effective_from=start, set_by=set_by)
            )

        return Operation(apply)

    async def put(self, model_id: str, price: Price, *, set_by: str, effective_from: int | None = None) -> PriceVersion:
        """`putting`, done."""
        return await self._combiner.run(self.putting(model_id, price, set_by=set_by, effective_from=effective_from))

    async def put_all(self, wanted: Sequence[tuple[str, Price]], *, set_by: str) -> list[PriceVersion]:
        """Set many models' prices from now on, in one transaction; the versions that are new.

        A model whose price in force is the same already keeps it. Raises PriceConflict, and then sets none.
        """

        assert len({model_id for model_id, _ in wanted}) == len(wanted), "one price a model"

        def apply(books: Books) -> list[PriceVersion]:
            listed = queries.current_prices(books.connection, at=books.at)
            known = {each.model_id: each for each in listed if each.effective_from <= books.at}
            changed = [
                PriceVersion.of(model_id, price, effective_from=books.at, set_by=set_by)
                for model_id, price in wanted
                if model_id not in known or known[model_id].price != price
            ]
            # Looked at before the first is written: what an operation refuses must leave no trace in its batch.
            if any(each.model_id in known and known[each.model_id].version == each.version for each in changed):
                raise PriceConflict
            return [queries.add_price(books.connection, each) for each in changed]

        return await self._combiner.run(Operation(apply))
