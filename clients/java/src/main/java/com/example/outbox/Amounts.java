package com.example.outbox;

import com.google.gson.Gson;
import com.google.gson.annotations.SerializedName;
import java.io.IOException;
import java.io.Reader;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Currency;
import java.util.List;
import money.v1.MoneyOuterClass.Money;

/** Converts Money from and to BigDecimal exactly, without doubles. */
final class Amounts {
  private static final int NANOS_DIGITS = 9;

  private Amounts() {}

  /** Returns the amount with the decimal places of its currency, such as 19.90. */
  static BigDecimal toDecimal(Money amount) {
    int digits = Currency.getInstance(amount.getCurrencyCode()).getDefaultFractionDigits();
    return BigDecimal.valueOf(amount.getUnits())
        .add(BigDecimal.valueOf(amount.getNanos(), NANOS_DIGITS))
        .setScale(digits);
  }

  static Money fromDecimal(String currencyCode, BigDecimal decimal) {
    BigDecimal[] parts = decimal.divideAndRemainder(BigDecimal.ONE);
    return Money.newBuilder()
        .setCurrencyCode(currencyCode)
        .setUnits(parts[0].longValueExact())
        .setNanos(parts[1].movePointRight(NANOS_DIGITS).intValueExact())
        .build();
  }

  static Money euros(String decimal) {
    return fromDecimal("EUR", new BigDecimal(decimal));
  }

  /** The test amounts that the clients of all languages share. */
  record Vectors(List<Vector> valid, List<Vector> invalid) {
    private static final Path FILE = Path.of("..", "money_vectors.json");

    static Vectors read() throws IOException {
      try (Reader reader = Files.newBufferedReader(FILE)) {
        return new Gson().fromJson(reader, Vectors.class);
      }
    }
  }

  /**
   * A test amount.
   *
   * @param decimal set if the amount is valid
   * @param fields the invalid fields, set if the amount is invalid
   */
  record Vector(
      @SerializedName("currency_code") String currencyCode,
      String units,
      int nanos,
      String decimal,
      List<String> fields) {

    Money money() {
      return Money.newBuilder()
          .setCurrencyCode(currencyCode)
          .setUnits(Long.parseLong(units))
          .setNanos(nanos)
          .build();
    }
  }
}
