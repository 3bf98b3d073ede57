package import Templates

/// A template and the rules for a well-known kind of receiver.
package struct Preset: Sendable {
    package let name: String
    package let summary: String
    package let kind: Template.Kind
    package let template: String
    package var rules = ResponseRules()
    /// Larger bodies are refused before they are sent, as the receiver would refuse them.
    package var maxBodyBytes: Int?
    /// How often the receiver accepts requests.
    package var rates: [RateLimit] = []
    /// From this size on a lint warns.
    package var warnBytes: Int?
    /// Texts that a template must contain, and texts that it must not contain, compared without
    /// white space.
    package var wanted: [String] = []
    package var refused: [String] = []
    /// What an operator should know before choosing the preset.
    package var warning: String?

    package static func named(_ name: String) throws -> Preset {
        if let preset = all.first(where: { $0.name == name }) { return preset }
        let close = all.map { ($0.name, editDistance($0.name, name)) }.filter { $0.1 <= 3 }.min { $0.1 < $1.1 }?.0
        throw Problem(
            .notFound, "there is no preset \"\(name.prefix(64))\"",
            hint: close.map { "Did you mean \"\($0)\"?" }, next: UseCase("template.presets"))
    }

    /// The receiver's requirements, beyond being well-formed, that a template made from this preset
    /// does not meet.
    package func findings(in template: Template) -> [String] {
        let compact = template.source.filter { !$0.isWhitespace }
        return wanted.filter { !compact.contains($0) }.map { "\(name) wants \($0)" }
            + refused.filter { compact.contains($0) }.map { "\(name) does not take \($0)" }
    }

    package static let all: [Preset] = [
        slack, teamsWorkflow, teamsWorkflowText, teamsConnector, xMattersDelivery, xMattersAlert, xMattersResponse,
        pagerDuty, generic,
    ]

    /// Slack responds with 200 and `ok`, and otherwise with a status and a short text; a 4xx is
    /// never worth another try.
    private static let slack = Preset(
        name: "slack", summary: "Slack incoming webhook: the text of after.text", kind: .json,
        template: #"{"text": "%after.text|New event%"}"#,
        rules: rules {
            $0.success = StatusSet([200...200])
            $0.permanent = StatusSet([400...400, 403...404, 413...413, 415...415])
            $0.checks = [check("text ok")]
        },
        // Slack may disable an application that keeps exceeding its limit. Characters beyond 40,000
        // are cut off.
        rates: [rate("1/s burst 3")], warnBytes: 40_000)

    /// An Adaptive Card in the only envelope that a workflow accepts. 202 says nothing about
    /// whether the card was shown.
    private static let teamsWorkflow = Preset(
        name: "teams-workflow", summary: "Microsoft Teams workflow: an Adaptive Card with after.text", kind: .json,
        template:
            #"{"type":"message","attachments":[{"contentType":"application/vnd.microsoft.card.adaptive","contentUrl":null,"#
            + #""content":{"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","type":"AdaptiveCard","version":"1.2","#
            + #""body":[{"type":"TextBlock","text":"%after.text|New event%","wrap":true}]}}]}"#,
        rules: rules { $0.success = StatusSet([202...202]) }, maxBodyBytes: 28_000, rates: [rate("4/1s")],
        warnBytes: 21_000,
        wanted: [
            #""type":"message""#, #""attachments""#, #""contentType":"application/vnd.microsoft.card.adaptive""#,
            #""content""#,
        ], refused: [#""Action.Submit""#],
        warning: "a workflow answers 202 before it looks at the card: that the card was shown cannot be verified")

    private static let teamsWorkflowText = Preset(
        name: "teams-workflow-text", summary: "Microsoft Teams workflow that reads a text itself", kind: .json,
        template: #"{"text": "%after.text|New event%"}"#, maxBodyBytes: 28_000, rates: [rate("4/1s")],
        warnBytes: 21_000,
        warning: "the workflow has to be made for a plain text; others take Adaptive Cards only")

    /// The retired connectors respond with 200 and `1`, and report throttling in the text of a 200.
    private static let teamsConnector = Preset(
        name: "teams-connector", summary: "Microsoft Teams connector (legacy): the text of after.text", kind: .json,
        template: #"{"text": "%after.text|New event%"}"#,
        rules: rules {
            $0.success = StatusSet([200...200])
            $0.checks = [check("text 1")]
            $0.throttled = ["returned HTTP error 429"]
        }, maxBodyBytes: 28_000, rates: ["4/1s", "60/30s", "100/1h", "150/2h", "1800/24h"].map(rate), warnBytes: 21_000,
        warning: "Microsoft has retired Office 365 connectors: use teams-workflow for what is new")

    private static let xMattersDelivery = Preset(
        name: "xmatters-delivery", summary: "xMatters delivery status update", kind: .json,
        template:
            #"{"recipient":%after.recipient%,"device":%after.device%,"deliveryStatus":"%after.deliveryStatus|Delivered%","#
            + #""deviceId":%endpoint_number%,"eventType":"%after.eventType|LIVE_NOTIFICATION_PROVIDER_DELIVERED%","#
            + #""message":"Notification delivered","eventIdentifier":%event_id%,"date":"%date%","eventProperties":%event_properties%}"#
    )

    private static let xMattersAlert = Preset(
        name: "xmatters-alert", summary: "xMatters alert status update", kind: .json,
        template:
            #"{"status":"%after.status|active%","eventIdentifier":%event_id%,"username":"%identity%","date":"%date%","#
            + #""eventProperties":%event_properties%}"#)

    /// A missing annotation arrives as the text "null" there.
    private static let xMattersResponse = Preset(
        name: "xmatters-response", summary: "xMatters response update", kind: .json,
        template: #"{"recipient":%after.recipient%,"device":%after.device%,"response":%after.response%,"#
            + #""annotation":"%after.annotation|null%","eventIdentifier":%event_id%,"date":"%date%","eventProperties":%event_properties%}"#
    )

    private static let pagerDuty = Preset(
        name: "pagerduty", summary: "PagerDuty Events API v2: triggers an alert", kind: .json,
        template:
            #"{"routing_key":"%context.routing_key%","event_action":"%after.event_action|trigger%","dedup_key":"%transaction_id%","#
            + #""payload":{"summary":"%type% %change_type% of %customer_id%","source":"%after.source|outbox%","#
            + #""severity":"%after.severity|info%","timestamp":"%occurred_at%","custom_details":%after%}}"#,
        rules: rules {
            $0.success = StatusSet([202...202])
            $0.permanent = StatusSet([400...400, 413...413, 415...415])
        }, maxBodyBytes: 512 * 1024, warning: "the event's context must hold the integration's routing_key")

    private static let generic = Preset(
        name: "generic", summary: "every member of the event", kind: .json,
        template: #"{"id":"%webhook_id%","type":"%type%","change_type":"%change_type%","customer_id":"%customer_id%","#
            + #""transaction_id":"%transaction_id%","identity":%identity%,"occurred_at":"%occurred_at%","before":%before%,"after":%after%}"#
    )

    private static func rules(_ change: (inout ResponseRules) -> Void) -> ResponseRules {
        var rules = ResponseRules()
        change(&rules)
        return rules
    }

    private static func rate(_ text: String) -> RateLimit {
        do { return try RateLimit(text) } catch { preconditionFailure("a rate of ours is not valid: \(error)") }
    }

    private static func check(_ text: String) -> Check {
        do { return try Check(text) } catch { preconditionFailure("a rule of ours is not valid: \(error)") }
    }
}
