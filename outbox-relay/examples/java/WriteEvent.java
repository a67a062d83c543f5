import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

/** Writes a customer and its event in one transaction. */
class WriteEvent {
  static String createCustomer(Connection conn, String name) throws SQLException {
    // First the change: its row lock keeps the events of one customer in order.
    try (var insert = conn.prepareStatement("insert into customers (name) values (?) returning id, version");
        // Then the event, with the whole state after the change.
        var enqueue = conn.prepareStatement(
            "select outbox_enqueue('customers.v1', ?, 'customer_created', ?,"
                + " jsonb_build_object('id', ?::bigint, 'name', ?::text))")) {
      insert.setString(1, name);
      var customer = insert.executeQuery();
      customer.next();
      enqueue.setString(1, customer.getString("id"));
      enqueue.setLong(2, customer.getLong("version"));
      enqueue.setLong(3, customer.getLong("id"));
      enqueue.setString(4, name);
      var event = enqueue.executeQuery();
      event.next();
      return event.getString(1);
    }
  }

  public static void main(String[] args) throws SQLException {
    var url = URI.create(System.getenv("DATABASE_URL"));
    var user = url.getUserInfo().split(":", 2);
    var jdbc = "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + url.getPath();
    try (var conn = DriverManager.getConnection(jdbc, user[0], user[1])) {
      conn.setAutoCommit(false);
      var eventId = createCustomer(conn, "Ada");
      conn.commit();
      createCustomer(conn, "Nobody");
      conn.rollback(); // There is no such customer, and no event.
      System.out.println(eventId);
    }
  }
}
