import ArgumentParser
import Operator
import OutboxPublishing

/// `outboxctl trigger`: sample events to try a receiver with.
struct TriggerCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trigger",
        abstract: "Publish a sample event: \(Sample.allCases.map(\.rawValue).joined(separator: ", ")).")
    @OptionGroup var options: GlobalOptions
    @Argument(help: "Which sample.") var sample: Sample
    @Option(name: .long, help: "Whose event it is.") var customer = "acme"

    enum Sample: String, ExpressibleByArgument, CaseIterable {
        case notificationsCreate = "Notifications.Create"
        case administratorLogin = "Administrator.Login"
        case orderCreated = "order.created"

        var event: NewEvent {
            switch self {
            case .notificationsCreate:
                var event = NewEvent(
                    type: "Notifications",
                    after:
                        #"{"PublishNotificationId":"2518777178829331203_YB2Y1","Destination":"acme;*","Component":"Citrix Cloud","CreatedDate":"2018-04-24T15:15:17.0668796Z","Categories":[],"Severity":0,"EventId":"7df85e7a-79b8-4cc2-abe0-c2f9ba2ec715","Priority":0,"Content":[{"LanguageTag":"en-US","Title":"This is a title","Description":"This is a description","DetailUri":null}],"Data":null,"ExternalId":null}"#
                )
                event.identity = "tom.kludy@citrix.com"
                return event
            case .administratorLogin:
                var event = NewEvent(
                    type: "Administrator",
                    after:
                        #"{"CustomerId":"acme","LogonTime":"2018-04-24T21:21:42.521Z","OrgId":"1487a6","Principal":"joe@mycompany.com"}"#
                )
                event.changeType = "Login"
                event.identity = "joe@mycompany.com"
                return event
            case .orderCreated:
                return NewEvent(type: "order.created", after: #"{"id":42,"total":"19.90","currency":"EUR"}"#)
            }
        }
    }

    func run() async throws {
        var event = sample.event
        event.customerID = customer
        let (id, listing) = try await Session.operate(options) { [event] in try await $0.events.publish(event) }
        if options.format == .table { print(id) } else { options.format.item(listing) }
    }
}
